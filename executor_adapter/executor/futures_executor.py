"""A JobExecutor as a `concurrent.futures.Executor`, for code that takes one."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, wait
from typing import Any, ParamSpec, TypeVar

from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.job import Job
from executor_adapter.supervision import JobFuture

P = ParamSpec("P")
R = TypeVar("R")


class FuturesExecutor(Executor):
    """Runs each submitted call as a job of a JobExecutor, which stays open when this one is shut down.

    `JobExecutor.as_executor` makes it. Its futures are JobFutures: `cancel` ends a running call too, and a cancelled
    one raises JobCancelledError, which is a `concurrent.futures.CancelledError`.
    """

    def __init__(self, submit_job: Callable[[Job], JobFuture], fields: Mapping[str, Any]) -> None:
        self._submit_job = submit_job
        self._fields = fields
        self._lock = threading.Lock()
        self._closed = False
        self._futures: weakref.WeakSet[JobFuture] = weakref.WeakSet()
        """All that have not ended, which the JobExecutor keeps alive, and some that have."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[R]:
        """Submit a call and return its future; waits while the JobExecutor holds `max_pending` jobs.

        Raises:
            RuntimeError: This executor is shut down, or its JobExecutor is.
            InvalidJobError, JobSerializationError: As `JobExecutor.submit`.
        """
        self._refuse_if_closed()
        future: JobFuture[R] = self._submit_job(Job(function=fn, args=args, kwargs=kwargs, **self._fields))
        with self._lock:
            if not self._closed:
                self._futures.add(future)
                return future
        future.cancel()  # It was shut down meanwhile, and no longer waits for this future.
        raise _closed()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and wait for those that were submitted. The JobExecutor stays open.

        `wait=False` returns at once. `cancel_futures=True` cancels the calls that have not started.
        """
        with self._lock:
            self._closed = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                if not future.running():
                    future.cancel()
        if wait:
            _wait_for(futures)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _closed()


_wait_for = wait  # `shutdown` has an argument of that name.


def _closed() -> ExecutorClosedError:
    return ExecutorClosedError("cannot schedule new futures after shutdown: make another with as_executor()")
