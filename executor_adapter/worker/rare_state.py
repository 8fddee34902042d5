"""The state of a process that functions seldom change, and that takes some twenty microseconds to read.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the functions of `signal` make two enum members in each call
import contextlib
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
from typing import Any, NamedTuple

from executor_adapter.worker import watched

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = tuple(map(int, sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))
_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))
_LIMIT_SETTERS = frozenset({"setrlimit", "prlimit"})


class _Aspect(NamedTuple):
    """One part of the state: how it is read, and how it is set. To set it raises an exception where that is refused."""

    read: Callable[[], Any]
    put: Callable[[Any], Any]


_ASPECTS = [
    _Aspect(gc.get_threshold, lambda values: gc.set_threshold(*values)),
    _Aspect(sys.getswitchinterval, sys.setswitchinterval),
    _Aspect(logging.getLogRecordFactory, logging.setLogRecordFactory),
    _Aspect(threading.gettrace, threading.settrace),
    _Aspect(threading.getprofile, threading.setprofile),
    _Aspect(functools.partial(locale.setlocale, locale.LC_ALL), functools.partial(locale.setlocale, locale.LC_ALL)),
    _Aspect(
        functools.partial(os.getpriority, os.PRIO_PROCESS, 0), functools.partial(os.setpriority, os.PRIO_PROCESS, 0)
    ),
]
if hasattr(os, "sched_setaffinity"):
    _ASPECTS.append(
        _Aspect(functools.partial(os.sched_getaffinity, 0), functools.partial(os.sched_setaffinity, 0)),
    )


class RareState:
    """Notes this state, and restores it.

    `own_signals`: the signals that the worker needs, so that they are never blocked. `stderr_fd`: where crashes are
    reported.
    """

    def __init__(self, own_signals: frozenset[int], stderr_fd: int) -> None:
        self._own_signals = own_signals
        self._stderr_fd = stderr_fd
        self._wakeup_fd = -1
        watched.changed.update(_LIMIT_SETTERS)

    def note(self) -> None:
        """Take the present state as the one to restore."""
        self._timers = list(map(signal.getitimer, _TIMERS))
        self._handlers = _handlers()
        self._mask = _mask() - self._own_signals
        self._wakeup_fd = signal.set_wakeup_fd(-1)
        self._set_wakeup_fd()
        self._values = [aspect.read() for aspect in _ASPECTS]
        self._ids = _ids()
        if watched.changed & _LIMIT_SETTERS:
            self._limits = _limits()

    def restore(self) -> bool:
        """Restore what was noted. Return False if the system refuses that, as a limit that only root may raise."""
        self._restore_signals()
        faulthandler.cancel_dump_traceback_later()
        if not faulthandler.is_enabled():
            faulthandler.enable(file=self._stderr_fd)
        restored = _ids() == self._ids
        with contextlib.suppress(OSError, ValueError, locale.Error):
            for aspect, value in zip(_ASPECTS, self._values, strict=True):
                if aspect.read() != value:
                    aspect.put(value)
            if watched.changed & _LIMIT_SETTERS and _limits() != self._limits:
                for number, limit in zip(_LIMITS, self._limits, strict=True):
                    resource.setrlimit(number, limit)
            return restored
        return False

    # --- signals ---

    def _restore_signals(self) -> None:
        for which, (seconds, interval) in zip(_TIMERS, self._timers, strict=True):
            now_left, now_interval = signal.getitimer(which)
            if now_interval != interval or (now_left > 0) is not (seconds > 0):
                signal.setitimer(which, seconds, interval)
        handlers = _handlers()
        if _mask() != self._mask:
            self._unblock()
        if handlers != self._handlers:
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                if _signal.getsignal(number) != handler and handler is not None:  # None: not installed from Python.
                    signal.signal(number, handler)
        self._set_wakeup_fd()

    def _unblock(self) -> None:
        """Restore the mask. Signals that arrived while they were blocked are lost."""
        for number in signal.sigpending() - self._own_signals:
            handler = signal.getsignal(number)
            signal.signal(number, signal.SIG_IGN)  # This discards a pending signal.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _set_wakeup_fd(self) -> None:
        signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)


def _handlers() -> list[Any]:
    return list(map(_signal.getsignal, _SIGNALS))


def _mask() -> set[int]:
    return set(_signal.pthread_sigmask(signal.SIG_BLOCK, ())) if hasattr(_signal, "pthread_sigmask") else set()


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(number) for number in _LIMITS]


def _ids() -> tuple[Any, ...]:
    if hasattr(os, "getresuid"):
        return (*os.getresuid(), *os.getresgid())
    return (os.getuid(), os.geteuid(), os.getgid(), os.getegid())
