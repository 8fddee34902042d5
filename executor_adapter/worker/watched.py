"""Notes calls of the functions by which Python code changes its process, so that the changes can be undone.

To read all of what they change takes some twenty microseconds, and most functions of jobs call none of them.

The guardian imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_IDS = ("uid", "euid", "reuid", "resuid", "gid", "egid", "regid", "resgid", "groups")

_WATCHED: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (signal, ("signal", "alarm", "setitimer", "pthread_sigmask", "set_wakeup_fd", "siginterrupt")),
    (resource, ("setrlimit", "prlimit")),
    (os, ("umask", "chdir", "fchdir", "close", "closerange", "dup2")),
    (os, ("nice", "setpriority", "sched_setaffinity", "set_blocking", *(f"set{name}" for name in _IDS))),
    (locale, ("setlocale",)),
    (logging, ("setLogRecordFactory",)),
    (threading, ("settrace", "setprofile")),
    (faulthandler, ("enable", "disable", "dump_traceback_later")),
    (gc, ("set_threshold", "enable", "disable")),
    (socket, ("setdefaulttimeout",)),
    # Not `settrace` and `setprofile`: what they set would see `noting` return, which it did not see begin.
    (sys, ("setswitchinterval", "setrecursionlimit")),
)

_DESCRIPTOR_ARGUMENT = {"close": 0, "closerange": 0, "dup2": 1}
"""Functions of which only calls for stdin, stdout and stderr are noted: the position of the descriptor they change."""

changed: set[str] = set()
"""Names of the functions that were called since it was cleared."""


def watch() -> None:
    """Watch these functions from now on, in this process and in those that it forks.

    It must be called before code of the user is imported, which may keep the functions that are here now.
    """
    for module, names in _WATCHED:
        for name in names:
            function = getattr(module, name, None)  # Some systems lack some of them.
            if function is not None and not hasattr(function, "__wrapped__"):
                noting = _noting(module, function)
                setattr(module, name, noting)
                for supporting in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
                    if function in supporting:
                        supporting.add(noting)


def _noting(module: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__name__
    position = _DESCRIPTOR_ARGUMENT.get(name)

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        if position is None or kwargs or args[position : position + 1] < (3,):
            changed.add(name)
        return function(*args, **kwargs)

    noting.__module__ = module.__name__
    return noting
