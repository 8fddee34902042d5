"""The executor of code that has entered none: one per process, made from the configuration."""

from __future__ import annotations

import os
import threading

from executor_adapter.executor.current import entered_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.executor.signals import signal_watch


class _DefaultExecutor:
    """Makes the default executor when it is first needed, and replaces it after it was closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: JobExecutor | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    def get(self) -> JobExecutor:
        with self._lock:
            # An executor that a signal has ended is not replaced: the program is ending, and nothing may start.
            if self._executor is None or (self._executor.is_closed and signal_watch.ended_by is None):
                self._executor = JobExecutor()
            return self._executor

    def _leave_to_parent(self) -> None:
        """Forget the executor in a forked process: its threads run in the parent, which may have held the lock."""
        self._lock = threading.Lock()
        self._executor = None


_default = _DefaultExecutor()


def current_executor() -> JobExecutor:
    """Return the innermost `with JobExecutor(...)` around the caller, else the default executor of this process.

    An executor that was entered before this process was forked does not count.
    """
    find = entered_executor()
    if find is None:
        return _default.get()
    executor: JobExecutor = find()
    return executor
