"""What a function can change in its process for the functions after it: noted before, put back after each call.

How much of it is looked at depends on the call (`Depth`): all of it where the call took a millisecond or more, or
called a function that changes some of it (`watched`). So only what a short call does by other means is missed.

What is noted is the state after the initializer, and after the modules of a function were imported for it: what modules
do when they are imported stays.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from executor_adapter.worker import watched
from executor_adapter.worker.rare_state import RareState
from executor_adapter.worker.stdio import move_up

_VALUES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
)
"""Values of the process that only watched functions set, each with the function that sets it."""
_GETTERS = tuple(get for get, _ in _VALUES)
_get_trace, _get_profile = sys.gettrace, sys.getprofile


class Depth(IntEnum):
    """Says how much is looked at after a call."""

    VALUES = 0
    """What can be compared without a system call."""
    DESCRIPTORS = 1
    """Also the working directory, the umask, stdin, stdout and stderr, and values that only watched functions set."""
    ALL = 2


_SECONDS_FOR_DESCRIPTORS, _SECONDS_FOR_ALL = 50e-6, 0.001
"""Seconds of a call from which it pays: what is looked at takes less than a twentieth of that."""

# Members of an enum take long to find.
_VALUES_ONLY, _DESCRIPTORS, _ALL = Depth


class _WatchedEnvironment(os._Environ[str]):  # noqa: SLF001  the class has no public name
    """The class that `os.environ` gets in a worker. To compare all variables after each call would take too long."""

    changed = True

    def __setitem__(self, key: Any, value: Any) -> None:
        _WatchedEnvironment.changed = True
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        _WatchedEnvironment.changed = True
        super().__delitem__(key)


class ProcessState:
    """Notes the state of the process, and restores it. For the arguments see RareState."""

    def __init__(self, own_signals: frozenset[int], stderr_fd: int) -> None:
        for environment in (os.environ, os.environb):
            environment.__class__ = _WatchedEnvironment
        self._environ = os.environ
        self._variables: dict[str, str] = {}
        self._folder = -1
        self._logging = LoggingState()
        self._rare = RareState(own_signals, stderr_fd)
        self.note()

    # --- before a function ---

    def note(self) -> None:
        """Take the present state as the one to restore."""
        self._modules = len(sys.modules)
        self._trace, self._profile = _get_trace(), _get_profile()
        self._values = [get() for get in _GETTERS]
        self._note_folder()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._path, self._path_entries = sys.path, list(sys.path)
        self._filters, self._filter_entries = warnings.filters, list(warnings.filters)
        self._show_warning = warnings.showwarning
        if _WatchedEnvironment.changed:
            self._variables = dict(self._environ)
            _WatchedEnvironment.changed = False
        self._timezone = time.tzname
        self._logging.note()
        self._rare.note()
        watched.changed.clear()

    def note_imports(self) -> None:
        """Take the present state as the one to restore if modules were imported since, or variables set."""
        if len(sys.modules) != self._modules or _WatchedEnvironment.changed:
            self.note()

    def note_path(self) -> None:
        """Take the present sys.path as the one to restore."""
        self._path_entries = list(sys.path)

    def _note_folder(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1
        with contextlib.suppress(OSError):  # The folder may not be read.
            self._folder = move_up(os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC))

    # --- after a function ---

    @staticmethod
    def depth_after(seconds: float) -> Depth:
        """Return how much is to be looked at after a call that took so many seconds."""
        if watched.changed or seconds >= _SECONDS_FOR_ALL:
            return _ALL
        return _DESCRIPTORS if seconds >= _SECONDS_FOR_DESCRIPTORS else _VALUES_ONLY

    def restore(self, depth: Depth) -> bool:
        """Restore what was noted.

        Return False if something cannot be restored: then the process must run no further function.
        """
        restored = self._rare.restore() if depth is _ALL else True
        try:
            if depth is not _VALUES_ONLY:
                self._restore_values()
            if _get_trace() is not self._trace or _get_profile() is not self._profile:
                sys.settrace(self._trace)
                sys.setprofile(self._profile)
            if sys.path is not self._path or sys.path != self._path_entries:
                sys.path = self._path
                sys.path[:] = self._path_entries
            if warnings.filters is not self._filters or warnings.filters != self._filter_entries:
                self._restore_filters()
            if warnings.showwarning is not self._show_warning:
                logging.captureWarnings(getattr(self._show_warning, "__module__", "") == "logging")
                warnings.showwarning = self._show_warning
            if _WatchedEnvironment.changed or os.environ is not self._environ:
                self._restore_environment()
            if time.tzname is not self._timezone:
                time.tzset()
                self._timezone = time.tzname
            self._logging.restore()
            watched.changed.clear()
        except OSError:  # The function closed the descriptors of the worker.
            return False
        return restored

    def _restore_values(self) -> None:
        os.umask(self._umask)
        if self._folder >= 0:
            os.fchdir(self._folder)
        for (get, put), value in zip(_VALUES, self._values, strict=True):
            if get() != value:
                put(value)

    def _restore_filters(self) -> None:
        warnings.filters = self._filters
        warnings.resetwarnings()  # It also discards what was cached of the filters.
        warnings.filters[:] = self._filter_entries  # type: ignore[index]

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003  the very object of before
        for name in self._environ.keys() - self._variables.keys():
            del self._environ[name]
        for name, value in self._variables.items():
            if self._environ.get(name) != value:
                self._environ[name] = value
        _WatchedEnvironment.changed = False


class LoggingState:
    """The part of the logging configuration through which all records go, and which loggers are disabled."""

    def __init__(self) -> None:
        self._root = logging.getLogger()
        self._manager = logging.root.manager
        # `dictConfig` and `fileConfig` disable all loggers that the configuration does not name.
        self._any_logger = logging.getLogger("executor-adapter-worker")
        self.note()

    def note(self) -> None:
        """Take the present configuration as the one to restore."""
        root = self._root
        self._level, self._root_disabled, self._disable = root.level, root.disabled, self._manager.disable
        self._handlers = [(handler, handler.level, list(handler.filters)) for handler in root.handlers]
        self._handler_list = list(root.handlers)
        self._filters = list(root.filters)
        self._any_logger.disabled = False
        self._disabled = {logger for logger in _loggers() if logger.disabled}

    def restore(self) -> None:
        """Restore what was noted."""
        root = self._root
        if (
            root.level != self._level
            or self._manager.disable != self._disable
            or root.handlers != self._handler_list
            or root.filters != self._filters
            or root.disabled is not self._root_disabled
        ):
            self._configure()
        for handler, level, filters in self._handlers:
            if handler.level != level or handler.filters != filters:
                handler.setLevel(level)
                handler.filters[:] = filters
        if self._any_logger.disabled:
            for logger in _loggers():
                logger.disabled = logger in self._disabled

    def _configure(self) -> None:
        self._root.setLevel(self._level)
        self._root.disabled = self._root_disabled
        logging.disable(self._disable)
        self._root.handlers[:] = self._handler_list
        self._root.filters[:] = self._filters


def _loggers() -> list[logging.Logger]:
    known = list(logging.root.manager.loggerDict.values())
    return [logger for logger in known if isinstance(logger, logging.Logger)]
