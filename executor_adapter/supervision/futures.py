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

from executor_adapter.job.status import JobStatus

if TYPE_CHECKING:
    from executor_adapter.job.model import Job
    from executor_adapter.supervision.supervisor import Supervisor

logger = logging.getLogger("executor_adapter")


CALLBACK_SECONDS = 10.0
"""For which one callback may keep an executor's end waiting."""


class Callbacks:
    """Runs users' callbacks on a thread of their own, since one that blocks must not hold up the supervisor."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._called = 0
        self._lock = threading.RLock()  # re-entrant: a signal handler may add a callback while its thread is in here
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Have the thread: at the interpreter's exit, when callbacks are called still, none can be started.

        Raises:
            RuntimeError: there is none to be had.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="executor-callbacks", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
                    raise

    def call(self, callback: Callable[[], object]) -> None:
        self.start()
        self._calls.put(callback)

    def close(self) -> None:
        """Let the thread end once it has called what it was given."""
        self._calls.put(None)

    def is_calling_here(self) -> bool:
        """Whether this is its thread, in a callback."""
        return threading.current_thread() is self._thread

    def wait(self) -> None:
        """Once it is closed: wait until all are called, or one takes longer than CALLBACK_SECONDS."""
        thread, seen = self._thread, -1
        if thread is None or self.is_calling_here():
            return
        while thread.is_alive() and seen != self._called:
            seen = self._called
            thread.join(CALLBACK_SECONDS)
        if thread.is_alive():
            logger.warning("a callback of a job's future takes longer than %s s: nobody waits for it", CALLBACK_SECONDS)

    def _run(self) -> None:
        while (callback := self._calls.get()) is not None:
            try:
                callback()
            except BaseException:  # SystemExit too: those after it are to be called all the same
                logger.exception("a callback of a job's future failed")
            callback = None  # else it would hold its job until the next
            self._called += 1


class JobFuture(Future[Any]):
    """The future of one job, and through `.job` all that is known of it while it runs.

    `result()` raises the function's own exception, or what the executor says instead: JobTimeoutError,
    WorkerCrashedError, MemoryLimitError, JobCancelledError, JobSerializationError. In a forked process it raises
    ExecutorClosedError where the job was not over at the fork.

    All futures of a supervisor share one condition, and the lists of those who wait are made when first asked for: most
    futures are done before anyone waits, and these would be half of the memory of a queued job. So nobody waits on the
    condition itself: who does is a waiter of the future, as those of `concurrent.futures.wait` are.
    """

    def __init__(self, job: Job, supervisor: Supervisor) -> None:
        # Instead of Future's own, which would make all of it at once.
        self.job = job
        self._supervisor = supervisor
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._made_waiters: list[Any] | None = None
        self._made_callbacks: list[Any] | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._supervisor.settling

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        made = self._made_waiters
        if made is None:
            made = self._made_waiters = []
        return made

    @property
    def _done_callbacks(self) -> list[Any]:
        made = self._made_callbacks
        if made is None:
            made = self._made_callbacks = []
        return made

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The job is over; the supervisor alone says so, and once."""
        with self._supervisor.settling_lock:
            self._result = value
            self._exception = error
            self._state = FINISHED
            if self._made_waiters:
                for waiter in self._made_waiters:
                    waiter.add_exception(self) if error is not None else waiter.add_result(self)
        if self._made_callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def result(self, timeout: float | None = None) -> Any:
        self._wait(timeout)
        error = self._exception
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error, self  # else the error's traceback would hold this frame, and with it the error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        if self._state == FINISHED:
            return
        self._supervisor.refuse_if_parents()  # nobody here would ever settle it
        waiter = _Waiter()
        with self._supervisor.settling_lock:
            if self._state == FINISHED:
                return
            self._waiters.append(waiter)
        try:
            within = -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
            if not waiter.lock.acquire(timeout=within):
                raise TimeoutError
        finally:
            with self._supervisor.settling_lock:
                self._waiters.remove(waiter)

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
        if not self.done():
            self._supervisor.expect_callback()
        super().add_done_callback(functools.partial(self._supervisor.deliver, fn))


class _Waiter:
    """One thread in `result` or `exception`."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()

    def add_result(self, _: Future[Any]) -> None:
        self.lock.release()

    add_exception = add_result
