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
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_IDS = ("uid", "euid", "reuid", "resuid", "gid", "egid", "regid", "resgid", "groups")

_WATCHED: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (signal, ("signal", "alarm", "setitimer", "pthread_sigmask", "set_wakeup_fd", "siginterrupt")),
    (resource, ("setrlimit", "prlimit")),
    (os, ("nice", "setpriority", "sched_setaffinity", "set_blocking", *(f"set{name}" for name in _IDS))),
    (locale, ("setlocale",)),
    (logging, ("setLogRecordFactory",)),
    (threading, ("settrace", "setprofile")),
    (faulthandler, ("enable", "disable")),
    (gc, ("set_threshold",)),
    (sys, ("setswitchinterval",)),
)

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
                setattr(module, name, _noting(module, function))


def _noting(module: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    name = function.__name__

    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        changed.add(name)
        return function(*args, **kwargs)

    noting.__module__ = module.__name__
    return noting
