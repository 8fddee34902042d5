"""Decides what follows a finished attempt: the job completes, is retried, or fails."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError, JobError, SoftTimeoutError
from executor_adapter.exceptions.display import as_exception, repr_of, traceback_text
from executor_adapter.job import TERMINAL, Job, JobStatus, RetryDecision, decide
from executor_adapter.pools import Assignment, Ending, SupervisorLoop
from executor_adapter.supervision.discard import PLAIN_TYPES, Discard
from executor_adapter.supervision.dispatcher import Dispatcher
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.job_scope import has_receiver
from executor_adapter.supervision.outcome import (
    code_and_message,
    failed_as,
    is_end_of,
    record_attempt,
    records_in,
    show_position,
    soft_timeout_error,
    stop_error,
)
from executor_adapter.supervision.state_tracker import StateTracker
from executor_adapter.supervision.stop_reason import StopReason

logger = logging.getLogger("executor_adapter")


class FollowUp:
    """Decides what follows an attempt, and brings jobs to their terminal states. Supervisor thread only.

    `on_last_job` is called when the last job of an executor that accepts no more has ended.
    """

    def __init__(
        self,
        loop: SupervisorLoop,
        intake: JobIntake,
        tracker: StateTracker,
        dispatcher: Dispatcher,
        discard: Discard,
        on_last_job: Callable[[], None],
    ) -> None:
        self.allows_retries = True
        """False once a shutdown cancels jobs, so that no further attempt may begin."""
        self._loop = loop
        self._intake = intake
        self._tracker = tracker
        self._dispatcher = dispatcher
        self._discard = discard
        self._on_last_job = on_last_job

    def follow(
        self, assignment: Assignment, ending: Ending, reason: StopReason | None, value: Any, error: BaseException | None
    ) -> None:
        """Record a finished attempt, and complete, retry or fail its job; `reason` is why it was stopped, if it was."""
        job = assignment.job
        is_plain = assignment.has_plain_value or type(value) in PLAIN_TYPES
        if error is not None or not (is_plain and job.live.is_plain):
            self._discard.add(assignment, value, error)
        try:
            if ending is Ending.RETURNED:
                record_attempt(assignment, None, self._loop.now())
                if job.live.driver is not None:
                    job.live.driver.resolve(value)
                else:
                    self.finish(job, JobStatus.COMPLETED, value)
                return
            if reason is not None or ending is Ending.STOPPED or ending is Ending.ABANDONED:
                error = stop_error(job, reason)
                show_position(error, assignment)
            assert error is not None
            error = as_exception(error)
            if is_a(error, SoftTimeoutError):
                error = soft_timeout_error(job, error)
            record_attempt(assignment, error, self._loop.now())
            self._fail_attempt(job, error)
        except BaseException as fault:  # The error's own code may run here, and may raise anything.
            self.fail_undecided(job, fault)

    def fail_undecided(self, job: Job, fault: BaseException) -> None:
        """Fail a job whose follow-up could not be decided: nothing else would end it."""
        text = traceback_text(fault, fault.__traceback__)
        logger.error("cannot decide what follows an attempt: the job fails\n%s", text, extra={"job_id": job.job_id})
        failure = JobError(f"cannot decide what follows the attempt: {repr_of(fault)}")
        if job.state.status in TERMINAL:
            return
        if job.live.driver is not None:
            job.live.driver.attempt_failed(failure)
        else:
            self.fail(job, failure)

    def _fail_attempt(self, job: Job, error: BaseException) -> None:
        if job.state.error_code == "RATE_LIMITED" and self._dispatcher.rate_limiter is not None:
            self._dispatcher.rate_limiter.pause(job, job.policy.limit_retry_after(retry_after_of(error)))
        if job.live.driver is not None:
            job.live.driver.attempt_failed(error)
            return
        decision = self.decide(job, error)
        if decision.retry:
            self.retry_later(job, decision, self._dispatcher.push, error)
        else:
            self.give_up(job, decision, error, failed_as(job, error))

    def decide(self, job: Job, error: BaseException) -> RetryDecision:
        """Decide whether an attempt that ended with `error` is retried."""
        if not self.allows_retries:
            return RetryDecision(retry=False, reason="the executor is shut down")
        if is_end_of(job, error):
            return RetryDecision(retry=False, reason="the job was cancelled or is past its deadline")
        state = job.state
        return decide(
            job.policy,
            code=error_code_of(error),
            attempt=state.attempt,
            crashes=state.crashes,
            retry_after=retry_after_of(error),
        )

    def retry_later(
        self, job: Job, decision: RetryDecision, when_due: Callable[[Job], None], error: BaseException | None
    ) -> None:
        """Let the job be RETRYING, without a slot, and call `when_due(job)` after the delay."""
        live = job.live
        live.alone = decision.alone
        if live.memory_limit is not None:
            live.memory_limit = decision.memory_limit(live.memory_limit)
        self._free_unused_slot(job)
        self._tracker.advance(job, JobStatus.RETRYING, error, retry_at=time.time() + decision.delay)
        if not has_receiver(job):
            _report_retry(job, decision.delay)
        self.schedule_retry(job, self._loop.now() + decision.delay, when_due)

    def schedule_retry(self, job: Job, due: float, when_due: Callable[[Job], None]) -> None:
        """Call `when_due(job)` at the monotonic time `due`."""
        self.set_timer(job, "retry", due, functools.partial(self._retry_due, when_due))

    def _retry_due(self, when_due: Callable[[Job], None], job: Job) -> None:
        job.live.queued_at = self._loop.now()
        when_due(job)

    def give_up(self, job: Job, decision: RetryDecision, error: BaseException, status: JobStatus | None = None) -> None:
        """End a job that is not retried, as `fail` does; quarantine it if the decision asks for that."""
        if decision.quarantine:
            self._intake.quarantined[job.job_id] = job
        self.fail(job, error, status)

    def fail(self, job: Job, error: BaseException, status: JobStatus | None = None) -> None:
        """End the job in `status`; by default FAILED, or CANCELLED if the error is a cancellation."""
        error = as_exception(error)
        job.record_error(*code_and_message(error))
        if status is None:
            status = JobStatus.CANCELLED if is_a(error, JobCancelledError) else JobStatus.FAILED
        self.finish(job, status, error=error)

    def finish(self, job: Job, status: JobStatus, value: Any = None, error: BaseException | None = None) -> None:
        """Bring the job to a terminal state. Nothing else does this."""
        live = job.live
        if live.timers:
            for timer in live.timers.values():
                timer.cancel()
        if live.driver is not None:
            self._free_unused_slot(job)
        records = records_in(value) if type(value) is dict else None
        self._tracker.advance(job, status, error, records_processed=records)
        self._intake.leave(job)
        # Release what only a live job needs. The future holds the job, so the job must not hold the future.
        future, live.future = live.future, None
        if error is not None or live.driver is not None or not live.is_plain:
            self._discard.add(future, live.payload, live.scope, live.driver, value, error)
        live.payload = live.assignment = live.timers = live.checkpoint = live.scope = None
        future.settle(value, error)
        if self._intake.closed and not self._intake.jobs:
            self._on_last_job()

    def set_timer(self, job: Job, name: str, when: float, callback: Callable[[Job], None]) -> None:
        """Call `callback(job)` at the monotonic time `when`, unless the job ends before."""
        timers = job.live.timers
        if timers is None:
            timers = job.live.timers = {}
        timers[name] = self._loop.call_at(when, functools.partial(callback, job))

    def _free_unused_slot(self, job: Job) -> None:
        driver = job.live.driver
        if driver is not None and driver.release_slot():
            self._dispatcher.take_back_slot(job)


def _report_retry(job: Job, delay: float) -> None:
    logger.warning(
        "job %s: attempt %d of %d failed (%s: %s), next in %s s",
        *(job.job_id, job.state.attempt, job.policy.retry_attempts + 1, job.error_code, job.error_message),
        f"{delay:.2f}".rstrip("0").removesuffix("."),
        extra={"job_id": job.job_id},
    )
