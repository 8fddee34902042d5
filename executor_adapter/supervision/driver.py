"""JobDriver: drives one job whose retries are decided outside the supervisor.

    acquire ──► attempt ──► complete | fail
       ▲           │
       └── retry ◄─┘

Prefect's engine and an overridden `execute_job` use it. The methods may be called from any thread; each asks the
supervisor for something and returns a Future. Only one such future may be outstanding at a time.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job import TERMINAL, Job, JobStatus, RetryDecision
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.transport.envelope import Body, Outcome, failed, returned
from executor_adapter.supervision.outcome import StopReason
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.worker.facts import facts_of


class DriverFuture(Future[Any]):
    """The future of a request. The thread that asks it opens what the function returned or raised."""

    def result(self, timeout: float | None = None) -> Any:
        """Return the value, or raise the error."""
        body: Body = super().result(timeout)
        try:
            return body.open()
        finally:
            del body, self  # The error's traceback holds this frame: it would be a cycle.

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` raises; None where it returns a value."""
        body: Body = super().result(timeout)
        return body.exception()


class JobDriver:
    """Drives one job through its executor. Must not be used by two threads at once.

    `applies_max_runtime`: whether the supervisor ends an attempt at `max_runtime`; otherwise its caller does.
    `on_message(topic, content)` is called with each message of the function, see `PoolSupervisor.on_message`, on the
    supervisor's thread: it must be quick, must not block and must not fail.
    """

    def __init__(
        self,
        job: Job,
        supervisor: Supervisor,
        *,
        applies_max_runtime: bool = True,
        on_message: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.job = job
        self.twin: Future[Any] | None = None
        """The future of the live job with the same dedupe_key: that one runs, and this driver has nothing to do."""
        self.applies_max_runtime = applies_max_runtime
        self.on_message = on_message
        self.waits_for_worker = True
        """Whether `acquire` resolves only when a worker can run the attempt, and not while its process starts."""
        self._supervisor = supervisor
        self._holds_slot = False
        self._outstanding: Future[Any] | None = None
        self._aborted: Outcome | None = None
        """How the job is to end, if it is being ended."""
        self._last_error: ErrorFacts | None = None

    # --- from any thread ---

    def acquire(self) -> Future[None]:
        """Ask for a slot. When the future resolves, the job is RUNNING and its attempt is counted.

        The future raises JobTimeoutError (QUEUE_TIMEOUT, DEADLINE_EXCEEDED) or JobCancelledError.
        """
        return self._ask(self._acquire)

    def attempt(
        self, *, context: contextvars.Context | None = None, scope: tuple[str, Any] | None = None
    ) -> Future[Any]:
        """Run one attempt in the slot that `acquire` got; the slot is free again when the future resolves.

        `context` holds the context variables that a function in a thread or coroutine sees. `scope` is a context
        manager entered around the function in the process that runs it: ("module:qualname", one picklable argument).
        The future returns the function's value, or raises its exception, or the executor's error for it.
        """

        def prepare(assignment: Assignment) -> None:
            if context is not None or scope is not None:  # Otherwise the assignment keeps those of the job's scope.
                assignment.context, assignment.scope = context, scope

        return self._ask(self._attempt, prepare)

    def decide(self, error: BaseException) -> RetryDecision:
        """Decide by the job's policy whether an attempt that ended with `error` is retried."""
        return self._supervisor.follow_up.decide(self.job, facts_of(error))

    def retry(self, decision: RetryDecision) -> Future[None]:
        """Let the job be RETRYING, without a slot; the future resolves after the delay."""
        retry_later = self._supervisor.follow_up.retry_later
        return self._ask(retry_later, self.job, decision, lambda _: self.resolve(Body()), self._last_error)

    def complete(self, value: Any = None) -> None:
        """End the job COMPLETED, and free a slot that is still held (a cached result needs no attempt)."""
        self._supervisor.call_soon(self._finish, returned(value))

    def fail(self, error: BaseException) -> None:
        """End the job FAILED, or CANCELLED if `error` is a cancellation."""
        self._supervisor.call_soon(self._fail, failed(error))

    def cancel(self) -> bool:
        """Cancel the job; the outstanding future raises JobCancelledError once its attempt is dead."""
        return self._supervisor.cancel_job(self.job)

    def stop_attempt(self, reason: StopReason) -> None:
        """End the running attempt; its future resolves once nothing of it is alive."""
        self._supervisor.call_soon(self._supervisor.stopping.stop_attempt, self.job, reason)

    def _ask(self, request: Callable[..., None], *args: Any) -> Future[Any]:
        future = DriverFuture()
        self._supervisor.call_soon(self._begin, future, request, args)
        return future

    # --- on the supervisor's thread ---

    def _begin(self, future: Future[Any], request: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._aborted is not None:
            future.set_result(self._aborted.body)
        elif self.job.status in TERMINAL:
            future.set_result(Body(error=JobCancelledError(f"job {self.job.job_id} has ended: {self.job.status}")))
        else:
            self._outstanding = future
            request(*args)

    def _acquire(self) -> None:
        self._supervisor.dispatcher.push(self.job)

    def _attempt(self, prepare: Callable[[Assignment], None]) -> None:
        self._supervisor.start_driven(self.job, prepare)

    def _finish(self, outcome: Outcome) -> None:
        if self.job.status not in TERMINAL:
            self._supervisor.follow_up.finish_job(self.job, JobStatus.COMPLETED, outcome)

    def _fail(self, outcome: Outcome) -> None:
        if self.job.status not in TERMINAL:
            assert outcome.error is not None, "what has failed has an error"
            decision = self._supervisor.follow_up.decide(self.job, outcome.error)
            self._supervisor.follow_up.give_up(self.job, decision, outcome)

    def accepted(self) -> None:
        """Note that the supervisor has accepted the job."""

    def take_slot(self) -> None:
        """Take the slot that was asked for; it can be used once `slot_granted` is called."""
        self._holds_slot = True

    @property
    def may_begin(self) -> bool:
        """Whether the slot that was taken is still held, for a job that is not being ended."""
        return self._holds_slot and self._aborted is None

    def slot_granted(self) -> None:
        """Let the attempt begin, in the slot that is held."""
        self.resolve(Body())

    def release_slot(self) -> bool:
        """Give up the slot; return whether one was held that no attempt used."""
        held, self._holds_slot = self._holds_slot, False
        return held

    def attempt_failed(self, outcome: Outcome) -> None:
        """Let the outstanding future raise the error with which the attempt ended."""
        self._last_error = outcome.error
        self.resolve(outcome.body)

    def abort(self, outcome: Outcome) -> None:
        """End the job while no attempt runs: the outstanding or next request of its driver raises this error."""
        if self._aborted is None:
            self._aborted = outcome
            self.attempt_failed(outcome)

    def expect_end(self, outcome: Outcome) -> None:
        """Note that the attempt is being ended, because the job is to end like this."""

    def resolve(self, body: Body) -> None:
        """Resolve the outstanding future: with a slot, what a function returned or raised, or the end of a delay."""
        future, self._outstanding = self._outstanding, None
        if future is not None:
            future.set_result(body)
