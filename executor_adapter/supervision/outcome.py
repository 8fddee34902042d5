"""What follows an attempt: its record, the decision, the state of its job, the observers. Supervisor thread only."""

from __future__ import annotations

import enum
import functools
import logging
import time
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError, JobError, JobTimeoutError, SoftTimeoutError
from executor_adapter.exceptions.display import as_exception, message_of, repr_of, traceback_text
from executor_adapter.job import TERMINAL, Job, JobStatus, Observer, RetryDecision, Transition, decide
from executor_adapter.pools import Assignment, Ending, SupervisorLoop
from executor_adapter.supervision.discard import PLAIN_TYPES, Discard
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.job_scope import has_receiver
from executor_adapter.supervision.scheduling import Dispatcher, PoolSet
from executor_adapter.supervision.stats import QUEUE_SECONDS, ended_jobs
from executor_adapter.worker import FunctionPosition

logger = logging.getLogger("executor_adapter")


class StopReason(enum.IntEnum):
    """Names why an attempt is ended. A later reason outweighs an earlier one.

    A user who cancels a job that is past its limit does not want it retried.
    """

    QUEUE_TIMEOUT = enum.auto()
    """Not begun within queue_timeout: it counts only as long as the attempt has not begun."""
    LIMIT = enum.auto()
    """Past max_runtime."""
    STALL = enum.auto()
    """No progress within stall_timeout."""
    DEADLINE = enum.auto()
    """Past the deadline over all attempts."""
    HANDOVER = enum.auto()
    """Another host may run the job."""
    SHUTDOWN = enum.auto()
    """The executor is shut down."""
    CANCEL = enum.auto()
    """Cancelled."""


class StateTracker:
    """Writes each transition into its job, counts it and notifies the observers, in order. Supervisor thread only."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)
        self.counts: dict[JobStatus, int] = dict.fromkeys(JobStatus, 0)
        self.retries = 0
        self.ended = ended_jobs()

    def enter(self, job: Job) -> None:
        """Count a new job as PENDING."""
        self.counts[JobStatus.PENDING] += 1
        if self.observers:
            self._notify(job, None, JobStatus.PENDING, None)

    def advance(
        self,
        job: Job,
        status: JobStatus,
        error: BaseException | None = None,
        *,
        attempt: int | None = None,
        retry_at: float | None = None,
        records_processed: int | None = None,
    ) -> None:
        """Let the job enter `status`, as `Job.advance` does; `error` is why, where an attempt failed.

        Raises:
            InvalidJobError: the transition is not legal.
        """
        previous = job.state.status
        job.advance(status, attempt=attempt, retry_at=retry_at, records_processed=records_processed)
        self.counts[previous] -= 1
        self.counts[status] += 1
        state = job.state
        if status is JobStatus.RETRYING:
            self.retries += 1
        elif state.completed_at is not None:
            waited = state.attempts[0][QUEUE_SECONDS] if state.attempts else None
            self.ended.append((state.completed_at, status, state.started_at, waited))
        if self.observers:
            self._notify(job, previous, status, error)

    def _notify(self, job: Job, previous: JobStatus | None, status: JobStatus, error: BaseException | None) -> None:
        transition = Transition(job, previous, status, time.time(), job.state.attempt, error)
        for observer in tuple(self.observers):
            try:
                observer(transition)
            except BaseException:  # SystemExit too: otherwise a caller that waits for the job would wait forever.
                logger.exception("an observer failed", extra={"job_id": job.job_id})


class FollowUp:
    """Decides what follows an attempt, and brings jobs to their terminal states. Supervisor thread only.

    It closes the pools when the last job of an executor that accepts no more has ended.
    """

    def __init__(
        self,
        loop: SupervisorLoop,
        intake: JobIntake,
        tracker: StateTracker,
        dispatcher: Dispatcher,
        pools: PoolSet,
        discard: Discard,
    ) -> None:
        self._loop = loop
        self._intake = intake
        self._tracker = tracker
        self._dispatcher = dispatcher
        self._pools = pools
        self._discard = discard
        self._allows_retries = True

    def end_retries(self) -> None:
        """Retry nothing from now on, because a shutdown cancels jobs."""
        self._allows_retries = False

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
                    self.finish_job(job, JobStatus.COMPLETED, value)
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
            self.fail_job(job, failure)

    def _fail_attempt(self, job: Job, error: BaseException) -> None:
        if job.state.error_code == "RATE_LIMITED":
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
        if not self._allows_retries:
            return RetryDecision(retry=False, reason="the executor is shut down")
        if _ended_by(error) == job.job_id:  # It ends the job, whatever its policy, and not only the attempt.
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
        """End a job that is not retried, as `fail_job` does; quarantine it if the decision asks for that."""
        if decision.quarantine:
            self._intake.quarantined[job.job_id] = job
        self.fail_job(job, error, status)

    def fail_job(self, job: Job, error: BaseException, status: JobStatus | None = None) -> None:
        """End the job in `status`; by default FAILED, or CANCELLED if the error is a cancellation."""
        error = as_exception(error)
        job.record_error(*code_and_message(error))
        if status is None:
            status = JobStatus.CANCELLED if is_a(error, JobCancelledError) else JobStatus.FAILED
        self.finish_job(job, status, error=error)

    def finish_job(self, job: Job, status: JobStatus, value: Any = None, error: BaseException | None = None) -> None:
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
            self._pools.close()

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


def record_attempt(assignment: Assignment, error: BaseException | None, now: float) -> None:
    """Record a finished attempt in its job; `now` counts as its end if the pool did not report one."""
    job, live = assignment.job, assignment.job.live
    ended_at = assignment.ended_at or now
    started_at = assignment.started_at or ended_at
    assignment.run_time.learn(ended_at - started_at)
    asked_at = assignment.stop_asked_at
    code, message = (None, None) if error is None else code_and_message(error)
    record = (  # In the order of Attempt's fields.
        assignment.number,
        live.pool,
        assignment.pid,
        started_at - live.queued_at,
        ended_at - started_at,
        None if asked_at is None else ended_at - asked_at,
        assignment.peak_rss,
        assignment.exit_code,
        assignment.exit_signal,
        code,
        message,
        assignment.node,
    )
    job.record_attempt(record)


def stop_error(job: Job, reason: StopReason | None) -> JobTimeoutError | JobCancelledError:
    """Return the error of a job that was ended for `reason`."""
    why_cancelled = None if job.live.scope is None else job.live.scope.why_cancelled()
    match reason:
        case StopReason.QUEUE_TIMEOUT:
            message = f"not started within queue_timeout={job.queue_timeout} s: raise it, or max_workers"
            return JobTimeoutError(message, error_code="QUEUE_TIMEOUT")
        case StopReason.LIMIT:
            return JobTimeoutError(f"ran longer than max_runtime={job.max_runtime} s")
        case StopReason.STALL:
            return JobTimeoutError(f"no progress within stall_timeout={job.stall_timeout} s")
        case StopReason.DEADLINE:
            message = f"not finished within deadline={job.deadline} s of its submission"
            return JobTimeoutError(message, error_code="DEADLINE_EXCEEDED", ends=job.job_id)
        case StopReason.HANDOVER | StopReason.SHUTDOWN:
            is_handover = reason is StopReason.HANDOVER
            why = "another host may run it, since the lease ended" if is_handover else "its executor was shut down"
            message = why_cancelled or f"job {job.job_id} was cancelled: {why}"
            return JobCancelledError(message, shutdown=True, ends=job.job_id)
        case StopReason.CANCEL | None:
            return JobCancelledError(why_cancelled or f"job {job.job_id} was cancelled", ends=job.job_id)


def show_position(error: JobTimeoutError | JobCancelledError, assignment: Assignment) -> None:
    """Let the error of a timeout show where the function was, as its cause."""
    if assignment.position and isinstance(error, JobTimeoutError):
        error.__cause__ = FunctionPosition(assignment.position)


def failed_as(job: Job, error: BaseException) -> JobStatus:
    """Return the final status of a job that failed with `error`: FAILED if the error is another job's cancellation."""
    cancelled = is_a(error, JobCancelledError) and _ended_by(error) in (None, job.job_id)
    return JobStatus.CANCELLED if cancelled else JobStatus.FAILED


def _ended_by(error: BaseException) -> str | None:
    """Return the id of the job that `stop_error` made the error for, if it did."""
    if type(error) is JobCancelledError or type(error) is JobTimeoutError:  # Not subclasses, whose own code may fail.
        return error.context.get("ends")
    return None


def soft_timeout_error(job: Job, cause: SoftTimeoutError) -> JobTimeoutError:
    """Return the error of an attempt that let SoftTimeoutError pass."""
    error = JobTimeoutError(f"ran longer than soft_timeout={job.soft_timeout} s")
    error.__cause__ = cause
    return error


def code_and_message(error: BaseException) -> tuple[str, str]:
    """Return the error code and the text that a job shows for `error`."""
    return error_code_of(error), message_of(error)


def records_in(value: dict[Any, Any]) -> int | None:
    """Return the number of collected or processed records that a function's result states."""
    for key in ("records_collected", "records_processed"):
        count: Any = value.get(key)
        # NumPy's integers are not ints. No other class is asked whether it is a number: that would run its code here.
        if type(count) is int or (type(count).__module__ == "numpy" and issubclass(type(count), Integral)):
            return int(count)
    return None
