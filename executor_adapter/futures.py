"""JobFuture: what `submit` gives; and the thread on which its callbacks run."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING  # the states that Future's own methods know
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from executor_adapter.job import JobStatus

if TYPE_CHECKING:
    from executor_adapter.job import Job
    from executor_adapter.supervisor import Supervisor

logger = logging.getLogger("executor_adapter")


class Callbacks:
    """Runs users' callbacks on a thread of their own, since one that blocks must not hold up the supervisor."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="executor-callbacks", daemon=True)
                self._thread.start()
        self._calls.put(callback)

    def close(self) -> None:
        """Let the thread end once it has called what it was given."""
        self._calls.put(None)

    def _run(self) -> None:
        while (callback := self._calls.get()) is not None:
            try:
                callback()
            except Exception:
                logger.exception("a callback of a job's future failed")


class JobFuture(Future[Any]):
    """The future of one job, and through `.job` all that is known of it while it runs.

    `result()` raises the function's own exception, or what the executor says instead: JobTimeoutError,
    WorkerCrashedError, MemoryLimitError, JobCancelledError, JobSerializationError.

    What only waiting needs, a condition and two lists, is made when first asked for: most futures are done before
    anyone waits, and it would be half of the memory of a queued job.
    """

    def __init__(self, job: Job, supervisor: Supervisor) -> None:
        # Instead of Future's own, which would make all of it at once.
        self.job = job
        self._supervisor = supervisor
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        make = _MADE_WHEN_NEEDED.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__.setdefault(name, make())  # one step under the GIL: two threads get the same

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The job is over; the supervisor alone says so, and once.

        The state is set under the condition, as whoever counts done futures relies on. Where nobody has made one, all
        of a supervisor's futures share one: only one is settled at a time, so it wakes nobody else.
        """
        condition = self.__dict__.setdefault("_condition", self._supervisor.settling)
        with condition:
            self._result = value
            self._exception = error
            self._state = FINISHED
            for waiter in self.__dict__.get("_waiters", ()):
                waiter.add_exception(self) if error is not None else waiter.add_result(self)
            condition.notify_all()
        if "_done_callbacks" in self.__dict__:
            self._invoke_callbacks()

    def cancel(self) -> bool:
        """End the job wherever it is, also while it runs; False where it is over already.

        It returns at once: the future is done when nothing of the job is alive any more.
        """
        return self._supervisor.cancel(self.job)

    def done(self) -> bool:
        return self._state == FINISHED

    def cancelled(self) -> bool:
        return self.done() and self.job.status is JobStatus.CANCELLED

    def running(self) -> bool:
        return self.job.status is JobStatus.RUNNING

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call `fn(future)` when the job is over: on a thread for callbacks, or here and now if it is over already."""
        super().add_done_callback(functools.partial(self._supervisor.deliver, fn))


_MADE_WHEN_NEEDED: dict[str, Callable[[], Any]] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}
