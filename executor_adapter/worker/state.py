"""What a function can change in its process for the functions after it: read before, and put back afterwards.

It is compared by reading it: before a call of another function starts, and after each call of a millisecond or more,
since to read all of it takes about as long as a short call. What cannot be put back wears the worker out.

What is put back is the state after the initializer, and after the modules of a function were imported for it: what
modules do when they are imported stays.

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
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from executor_adapter.worker.stdio import Stdio

COMPARE_SECONDS = 0.001
"""Seconds of a call after which the state is compared at once: it takes a thirtieth of that."""

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = tuple(map(int, sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})))
_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))


class _Aspect(NamedTuple):
    """One part of the state: how it is read, and how it is set to what was read before.

    To set it raises an exception where that is refused, or changes nothing.
    """

    read: Callable[[], Any]
    put: Callable[[Any], object]


class ProcessState:
    """Notes the state of the process, and restores it.

    `own_signals`: the signals that the worker needs, so that they are never blocked.
    """

    def __init__(self, own_signals: frozenset[int], stdio: Stdio) -> None:
        global _of_this_worker
        _of_this_worker = self
        self.is_compared = True
        """Whether no function has run since the state was compared."""
        self.modules = 0
        """How many modules were imported when the present call began."""
        self.is_worn = False
        """Whether something could not be put back: then the process must run no further function."""
        self._stdio = stdio
        self._own_signals = own_signals
        # `dictConfig` and `fileConfig` disable all loggers that the configuration does not name.
        self._any_logger = logging.getLogger("executor-adapter-worker")
        self._aspects = (_Aspect(self._signal_mask, self._unblock), *_ASPECTS)
        self.note()

    # --- before a function ---

    def note(self) -> None:
        """Take the present state as the one to restore."""
        self._timers = list(map(signal.getitimer, _TIMERS))
        self._wakeup_fd = signal.set_wakeup_fd(-1)
        self._set_wakeup_fd()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._any_logger.disabled = False
        self._disabled_loggers = {logger for logger in _loggers() if logger.disabled}
        self._noted = self._read()

    def note_imports(self) -> None:
        """Take the present state as the one to restore if modules were imported since the call began.

        What the same function left in a short call before is noted with it, where its arguments need a further module.
        """
        if len(sys.modules) != self.modules:
            self.note()

    # --- after a function ---

    def restore(self) -> None:
        """Restore what was noted. `is_worn` tells where that is impossible."""
        try:
            self._restore_unread()
            if self._read() != self._noted:
                for aspect, noted in zip(self._aspects, self._noted, strict=True):
                    if aspect.read() != noted:
                        aspect.put(noted)
                self.is_worn = self.is_worn or self._read() != self._noted
        except BaseException:  # The system refuses it, or a signal handler that the function left has raised.
            self.is_worn = True
        self.is_compared = True

    def _read(self) -> list[Any]:
        return [aspect.read() for aspect in self._aspects]

    def _restore_unread(self) -> None:
        """Restore what is set as quickly as it is read, or cannot be compared."""
        for which, (seconds, interval) in zip(_TIMERS, self._timers, strict=True):
            now_left, now_interval = signal.getitimer(which)
            if now_interval != interval or (now_left > 0) is not (seconds > 0):
                signal.setitimer(which, seconds, interval)
        self._set_wakeup_fd()
        faulthandler.cancel_dump_traceback_later()
        if not faulthandler.is_enabled():
            faulthandler.enable(file=self._stdio.stderr_fd)
        os.umask(self._umask)
        self._stdio.restore()
        if self._any_logger.disabled:
            for logger in _loggers():
                logger.disabled = logger in self._disabled_loggers

    def _set_wakeup_fd(self) -> None:
        signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)

    def _signal_mask(self) -> set[int]:
        return _mask() - self._own_signals

    def _unblock(self, mask: set[int]) -> None:
        """Restore the mask. Signals that arrived while they were blocked are lost."""
        for number in signal.sigpending() - self._own_signals:
            handler = signal.getsignal(number)
            signal.signal(number, signal.SIG_IGN)  # This discards a pending signal.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_of_this_worker: ProcessState | None = None


@contextlib.contextmanager
def lasting_changes() -> Iterator[None]:
    """Let what is changed in the `with` block, before a function is called, stay for later functions of a worker."""
    state = _of_this_worker
    if state is not None:
        state.note_imports()
        state.restore()
    yield
    if state is not None:
        state.note()


# --- how each aspect is read and set ---


def _mask() -> set[int]:
    return set(_signal.pthread_sigmask(signal.SIG_BLOCK, ())) if hasattr(_signal, "pthread_sigmask") else set()


def _handlers() -> list[Any]:
    return list(map(_signal.getsignal, _SIGNALS))


def _put_handlers(handlers: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if _signal.getsignal(number) != handler and handler is not None:  # None: not installed from Python.
            signal.signal(number, handler)


_environ = os.environ
_variables: dict[bytes, bytes] = vars(_environ)["_data"]
"""The variables as `os.environ` holds them: to read them through it takes a hundred times as long."""


def _environment() -> tuple[int, dict[bytes, bytes]]:
    return id(os.environ), dict(_variables)


def _put_environment(noted: tuple[int, dict[bytes, bytes]]) -> None:
    os.environ = _environ  # noqa: B003  the very object of before
    for name in _variables.keys() - noted[1].keys():
        del os.environb[name]
    for name, value in noted[1].items():
        if _variables.get(name) != value:
            os.environb[name] = value


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # It was deleted.
        return None


def _path() -> tuple[list[str], list[str]]:
    return sys.path, list(sys.path)


def _put_path(noted: tuple[list[str], list[str]]) -> None:
    sys.path, entries = noted
    sys.path[:] = entries


def _filters() -> tuple[Any, list[Any]]:
    return warnings.filters, list(warnings.filters)


def _put_filters(noted: tuple[Any, list[Any]]) -> None:
    warnings.filters, entries = noted
    warnings.resetwarnings()  # It also discards what was cached of the filters.
    warnings.filters[:] = entries  # type: ignore[index]


def _put_show_warning(noted: Callable[..., Any]) -> None:
    logging.captureWarnings(getattr(noted, "__module__", "") == "logging")
    warnings.showwarning = noted


def _logging() -> tuple[Any, ...]:
    """Return the part of the configuration through which all records go."""
    root = logging.root
    handlers = [(handler, handler.level, list(handler.filters)) for handler in root.handlers]
    return root.level, root.disabled, root.manager.disable, list(root.filters), handlers


def _put_logging(noted: tuple[Any, ...]) -> None:
    level, disabled, disable, filters, handlers = noted
    root = logging.root
    root.setLevel(level)
    root.disabled = disabled
    logging.disable(disable)
    root.filters[:] = filters
    root.handlers[:] = [handler for handler, _, _ in handlers]
    for handler, its_level, its_filters in handlers:
        handler.setLevel(its_level)
        handler.filters[:] = its_filters


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logger for logger in known if isinstance(logger, logging.Logger)]


def _resource_limits() -> list[tuple[int, int]]:
    return list(map(resource.getrlimit, _LIMITS))


def _put_resource_limits(limits: list[tuple[int, int]]) -> None:
    for number, limit in zip(_LIMITS, limits, strict=True):
        resource.setrlimit(number, limit)


def _ids() -> tuple[Any, ...]:
    if hasattr(os, "getresuid"):
        return (*os.getresuid(), *os.getresgid())
    return (os.getuid(), os.geteuid(), os.getgid(), os.getegid())


_ASPECTS = [
    _Aspect(sys.gettrace, sys.settrace),
    _Aspect(sys.getprofile, sys.setprofile),
    _Aspect(threading.gettrace, threading.settrace),
    _Aspect(threading.getprofile, threading.setprofile),
    _Aspect(_handlers, _put_handlers),
    _Aspect(_environment, _put_environment),
    _Aspect(lambda: time.tzname, lambda _: time.tzset()),
    _Aspect(_folder, os.chdir),
    _Aspect(_path, _put_path),
    _Aspect(_filters, _put_filters),
    _Aspect(lambda: warnings.showwarning, _put_show_warning),
    _Aspect(_logging, _put_logging),
    _Aspect(logging.getLogRecordFactory, logging.setLogRecordFactory),
    _Aspect(functools.partial(locale.setlocale, locale.LC_ALL), functools.partial(locale.setlocale, locale.LC_ALL)),
    _Aspect(sys.getrecursionlimit, sys.setrecursionlimit),
    _Aspect(sys.getswitchinterval, sys.setswitchinterval),
    _Aspect(gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    _Aspect(gc.get_threshold, lambda values: gc.set_threshold(*values)),
    _Aspect(socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Aspect(
        functools.partial(os.getpriority, os.PRIO_PROCESS, 0), functools.partial(os.setpriority, os.PRIO_PROCESS, 0)
    ),
    _Aspect(_resource_limits, _put_resource_limits),
    _Aspect(_ids, lambda _: None),
]
if hasattr(os, "sched_setaffinity"):
    _ASPECTS.append(
        _Aspect(functools.partial(os.sched_getaffinity, 0), functools.partial(os.sched_setaffinity, 0)),
    )
