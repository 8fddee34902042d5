"""JobDriver: one job whose retries somebody else decides, Prefect's engine or an overridden `execute_job`.

    acquire ──► attempt ──► complete | fail
       ▲           │
       └── retry ◄─┘

Its methods may be called from any thread; each hands over to the supervisor and gives a Future. One future is
outstanding at a time.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job.model import Job
from executor_adapter.job.retry import RetryDecision
from executor_adapter.job.status import TERMINAL, JobStatus
from executor_adapter.pools.base import Assignment

if TYPE_CHECKING:
    from executor_adapter.supervision.running_attempts import StopReason
    from executor_adapter.supervision.supervisor import Supervisor

logger = logging.getLogger("executor_adapter")


class JobDriver:
    """Drives `job` through the executor that made it. Not for use by two threads at once."""

    def __init__(self, job: Job, supervisor: Supervisor, *, applies_max_runtime: bool = True) -> None:
        self.job = job
        self.applies_max_runtime = applies_max_runtime
        """Whether the supervisor ends an attempt at max_runtime; else whoever drives does."""
        self.wants_slot = False
        self._supervisor = supervisor
        self._holds_slot = False
        self._outstanding: Future[Any] | None = None
        self._doom: BaseException | None = None
        self._last_error: BaseException | None = None
        self._listeners: list[Callable[[str, Any], None]] = []

    # --- from any thread ---

    def acquire(self) -> Future[None]:
        """Wait for a slot. When it resolves the job is RUNNING and its attempt is counted.

        The future raises JobTimeoutError (QUEUE_TIMEOUT, DEADLINE_EXCEEDED) or JobCancelledError.
        """
        return self._ask(self._acquire)

    def attempt(
        self, *, context: contextvars.Context | None = None, scope: tuple[str, Any] | None = None
    ) -> Future[Any]:
        """Run one attempt in the slot that `acquire` got; the slot is free again when it resolves.

        `context`: the context variables a function in a thread or coroutine sees. `scope`: a context manager entered
        around the function in whichever process it runs: ("module:qualname", its one picklable argument).
        The future gives the function's value, or raises its exception or what the executor says instead.
        """

        def prepare(assignment: Assignment) -> None:
            if context is not None or scope is not None:  # else its scope', if it has any
                assignment.context, assignment.scope = context, scope

        return self._ask(self._attempt, prepare)

    def decide(self, error: BaseException) -> RetryDecision:
        """What the job's policy makes of `error`, with which the last attempt ended."""
        return self._supervisor.decide(self.job, error)

    def retry(self, decision: RetryDecision) -> Future[None]:
        """RETRYING from now on, without a slot; it resolves when the delay is over."""
        return self._ask(self._retry, decision)

    def complete(self, value: Any = None) -> None:
        """End the job COMPLETED; a slot still held (a cached result needs no attempt) is free again."""
        self._supervisor.call_soon(self._finish, value)

    def fail(self, error: BaseException) -> None:
        """End the job FAILED; CANCELLED where `error` says so."""
        self._supervisor.call_soon(self._fail, error)

    def cancel(self) -> bool:
        """End whatever runs of the job; the outstanding future raises JobCancelledError once it is dead."""
        return self._supervisor.cancel(self.job)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While it lasts, the attempt that runs waits for another job; its slot is free for that one."""
        self._supervisor.call_soon(self._supervisor.lend_slot, self.job)
        try:
            yield
        finally:
            self._supervisor.call_soon(self._supervisor.take_slot_back, self.job)

    def stop_attempt(self, reason: StopReason) -> None:
        """End the attempt that runs; its future resolves once nothing of it is alive."""
        self._supervisor.call_soon(self._supervisor.stop_attempt, self.job, reason)

    def on_message(self, callback: Callable[[str, Any], None]) -> None:
        """Have `callback(topic, content)` told what the function says (topics: pools.base.PoolSupervisor.on_message).

        It is called on the supervisor's thread: it must be quick and must not block.
        """
        self._listeners.append(callback)

    def _ask(self, request: Callable[..., None], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._supervisor.call_soon(self._begin, future, request, args)
        return future

    # --- on the supervisor's thread ---

    def _begin(self, future: Future[Any], request: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._doom is not None:
            future.set_exception(self._doom)
        elif self.job.status in TERMINAL:
            future.set_exception(JobCancelledError(f"job {self.job.job_id} is over: {self.job.status}"))
        else:
            self._outstanding = future
            request(*args)

    def _acquire(self) -> None:
        self.wants_slot = True
        self._supervisor.enqueue(self.job)

    def _attempt(self, prepare: Callable[[Assignment], None]) -> None:
        self._supervisor.start_driven(self.job, prepare)

    def _retry(self, decision: RetryDecision) -> None:
        self._supervisor.retry_later(self.job, decision, lambda job: self.resolve(None), self._last_error)

    def _finish(self, value: Any) -> None:
        if self.job.status not in TERMINAL:
            self._supervisor.finish(self.job, JobStatus.COMPLETED, value)

    def _fail(self, error: BaseException) -> None:
        if self.job.status not in TERMINAL:
            self._supervisor.give_up(self.job, self.decide(error), error)

    def accepted(self) -> None:
        """The supervisor has taken the job in."""

    def slot_granted(self) -> None:
        self.wants_slot = False
        self._holds_slot = True
        self.resolve(None)

    def release_slot(self) -> bool:
        """Whether a slot was held that no attempt used; it is not, from now on."""
        held, self._holds_slot = self._holds_slot, False
        return held

    def attempt_failed(self, error: BaseException) -> None:
        self._last_error = error
        if (future := self._take_outstanding()) is not None:
            future.set_exception(error)

    def doom(self, error: BaseException) -> None:
        """The job is to end while nothing of it runs: so does whatever its driver waits for, or asks next."""
        if self._doom is None:
            self._doom = error
            self.wants_slot = False
            self.attempt_failed(error)

    def stopping(self, error: BaseException) -> None:
        """The job is to end with `error`, and its attempt is being ended; its future tells once that is dead."""

    def receive(self, topic: str, content: Any) -> None:
        for listener in self._listeners:
            try:
                listener(topic, content)
            except Exception:
                logger.exception("a listener of a job failed", extra={"job_id": self.job.job_id})

    def resolve(self, value: Any) -> None:
        """What the driver waits for is there: a slot, a function's value, the end of a delay."""
        if (future := self._take_outstanding()) is not None:
            future.set_result(value)

    def _take_outstanding(self) -> Future[Any] | None:
        future, self._outstanding = self._outstanding, None
        return future
