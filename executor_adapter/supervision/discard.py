"""Drops the last references to users' objects on a thread of its own.

Whoever drops the last reference to an object runs its `__del__`, which may be slow. The supervisor holds the arguments,
values and errors of jobs, and often is the last to do so. What it is done with is collected here during a turn, while
functions of that turn may still refer to it, and is dropped by the thread afterwards.

What a worker process returned or raised is bytes here, and objects of plain types have no code of users, so a job that
has nothing else costs nothing. Objects in reference cycles are beyond control: Python's garbage collector frees them on
whichever thread it happens to run.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from types import BuiltinFunctionType, FunctionType
from typing import Any

from executor_adapter.job import Job
from executor_adapter.pools.transport.envelope import PLAIN_TYPES


class Discard:
    """Collects what the supervisor is done with. Supervisor thread only.

    `is_off`: there is no other thread to drop things on, since jobs run inline.
    """

    def __init__(self, *, is_off: bool = False) -> None:
        self._is_off = is_off
        self._collected: list[Any] = []
        self._batches: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, *things: Any) -> None:
        """Drop these after the turn."""
        if not self._is_off:
            self._collected.append(things)

    def flush(self) -> None:
        """Hand over what was collected, at the end of a turn."""
        if self._collected and self._is_thread_there():
            batch, self._collected = self._collected, []
            self._batches.put(batch)  # The thread empties the list, so this reference to it keeps nothing alive.

    def close(self) -> None:
        """Hand over the rest, and let the thread end."""
        self.flush()
        self._batches.put(None)

    def detach_after_fork(self) -> None:
        """Drop nothing on a thread in a forked process, which has none."""
        self._is_off = True

    def wait(self, seconds: float) -> None:
        """Wait after `close` until all is dropped, for at most so many seconds: a `__del__` may hang."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _is_thread_there(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="executor-discard", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # The system refuses it now: the next turn tries again.
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            batch.clear()


def is_plain_job(job: Job) -> bool:
    """Return whether nothing that the job holds has code of users that runs when it is freed."""
    function = job.function
    if type(function) is FunctionType:
        if function.__closure__ or function.__defaults__ or function.__kwdefaults__:
            return False
    elif type(function) is not str and type(function) is not BuiltinFunctionType:
        return False
    if job.kwargs or job.metadata:
        return False
    return not job.args or all(type(argument) in PLAIN_TYPES for argument in job.args)
