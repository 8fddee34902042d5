"""What follows an attempt: its record, the decision, the state of its job, the observers, the counts."""

from __future__ import annotations

import enum
import functools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import JobCancelledError, JobError, JobTimeoutError, SoftTimeoutError
from executor_adapter.exceptions.display import repr_of, traceback_text
from executor_adapter.job import TERMINAL, Attempt, Job, JobStatus, Observer, RetryDecision, Transition, decide
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.transport.envelope import Ending, Outcome, failed
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.messages import has_receiver
from executor_adapter.supervision.scheduling import Dispatcher, PoolSet
from executor_adapter.supervision.thread import Discard
from executor_adapter.worker import wire
from executor_adapter.worker.stacks import FunctionPosition

logger = logging.getLogger("executor_adapter")

MAX_ENDED_JOBS = 4096
"""The number of recently ended jobs that figures are computed of: more would cost more time and add little."""

DEFAULT_WINDOW_SECONDS = 3600.0
"""The seconds that figures look back by default."""

EndedJob = tuple[float, JobStatus, float | None, float | None]
"""When a job ended, how, when it started (both in seconds since the epoch), and the seconds from submit to that."""


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
        """How many jobs have entered each status, less those that have left it; new jobs are counted by the intake."""
        self.retries = 0
        self.ended: deque[EndedJob] = deque(maxlen=MAX_ENDED_JOBS)
        """The jobs that ended last: plain tuples, since the supervisor has a few hundred nanoseconds a job for it."""

    def announce(self, job: Job) -> None:
        """Notify the observers that a new job is PENDING."""
        self._notify(job, None, JobStatus.PENDING, None)

    def advance(
        self,
        job: Job,
        status: JobStatus,
        error: ErrorFacts | None = None,
        *,
        ago: float = 0.0,
        retry_at: float | None = None,
        records_processed: int | None = None,
    ) -> None:
        """Let the job enter `status`, as `Job.advance` does; `error` is why, where an attempt failed.

        Raises:
            InvalidJobError: the transition is not legal.
        """
        previous = job.state.status
        job.advance(status, ago=ago, retry_at=retry_at, records_processed=records_processed)
        self.counts[previous] -= 1
        self.counts[status] += 1
        state = job.state
        if status is JobStatus.RETRYING:
            self.retries += 1
        elif state.completed_at is not None:
            waited = state.attempts[0].queue_seconds if state.attempts else None
            self.ended.append((state.completed_at, status, state.started_at, waited))
        if self.observers:
            self._notify(job, previous, status, error)

    def _notify(self, job: Job, previous: JobStatus | None, status: JobStatus, error: ErrorFacts | None) -> None:
        transition = Transition(job, previous, status, time.time(), job.state.attempt, error)
        for observer in tuple(self.observers):
            try:
                observer(transition)
            except BaseException:  # SystemExit too: otherwise a caller that waits for the job would wait forever.
                logger.exception("an observer failed", extra={"job_id": job.job_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """Counts jobs since the executor was made and workers now, with figures of the jobs that ended within `window`.

    Shares are from 0 to 1, times are seconds; None where there is nothing to measure. The figures are of the last 4096
    jobs at most, so that computing them stays cheap.
    """

    jobs_pending: int
    """Jobs in the queue now."""
    jobs_running: int
    """Jobs that run now."""
    jobs_retrying: int
    """Jobs that wait for a retry now."""
    jobs_completed: int
    """Jobs that completed."""
    jobs_failed: int
    """Jobs that failed."""
    jobs_cancelled: int
    """Jobs that were cancelled."""
    retries: int
    """Retries that were scheduled."""
    workers_busy: int
    """Workers that run an attempt now."""
    abandoned_threads: int
    """Threads and coroutines that could not be ended at their limit and were abandoned."""
    quarantined: tuple[str, ...]
    """Ids of jobs that killed more workers than their policy allows."""
    window: float = DEFAULT_WINDOW_SECONDS
    """Seconds that the figures below look back."""
    window_jobs: int = 0
    """Jobs that completed or failed within `window`."""
    failure_rate: float | None = None
    """The share of them that failed."""
    job_seconds_mean: float | None = None
    """Seconds from a job's first start to its end, retries and their waits included."""
    job_seconds_p50: float | None = None
    """The median."""
    job_seconds_p95: float | None = None
    """The 95th percentile."""
    queue_seconds_mean: float | None = None
    """Seconds from submit to the first start."""
    queue_seconds_p95: float | None = None
    """The 95th percentile."""
    longest_running_seconds: float | None = None
    """Seconds that the oldest running attempt has run."""
    jobs_near_limit: int = 0
    """Jobs that have used most of their max_runtime or deadline, see the setting `monitoring.near_limit`."""
    waits_for_memory: bool = False
    """Whether no further attempt starts while one runs, because memory is short."""
    waiting_for_resources: int = 0
    """Jobs that do not start because other attempts hold the resources that they need."""
    memory_limit_bytes: int | None = None
    """The memory of the control group or machine in which it is scarcest; None with `executor.memory: null`."""
    memory_left_bytes: int | None = None
    """What is left of it."""

    @property
    def success_rate(self) -> float | None:
        """The share of the jobs that completed, of all that completed or failed."""
        ended = self.jobs_completed + self.jobs_failed
        return self.jobs_completed / ended if ended else None


def figures(ended: Iterable[EndedJob], *, now: float, window: float) -> dict[str, Any]:
    """Return the fields of ExecutorStats about jobs that ended within `window` seconds before `now`."""
    jobs = [job for job in tuple(ended) if job[0] >= now - window]
    by_status = Counter(status for _, status, _, _ in jobs)
    failed, counted = by_status[JobStatus.FAILED], by_status[JobStatus.FAILED] + by_status[JobStatus.COMPLETED]
    took = sorted(max(0.0, at - started_at) for at, _, started_at, _ in jobs if started_at is not None)
    waited = sorted(seconds for *_, seconds in jobs if seconds is not None)
    return {
        "window": window,
        "window_jobs": counted,
        "failure_rate": failed / counted if counted else None,
        "job_seconds_mean": mean(took),
        "job_seconds_p50": percentile(took, 0.5),
        "job_seconds_p95": percentile(took, 0.95),
        "queue_seconds_mean": mean(waited),
        "queue_seconds_p95": percentile(waited, 0.95),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None where there are no values."""
    return math.fsum(values) / len(values) if values else None


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of all do not exceed (the nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None


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
        self.allows_retries = True
        """Whether jobs are retried: not once a shutdown cancels jobs."""
        self.requeues = False
        """Whether the jobs that a shutdown cuts off stay in a store, for the next host."""

    def follow(self, assignment: Assignment, outcome: Outcome, reason: StopReason | None) -> None:
        """Record a finished attempt, and complete, retry or fail its job; `reason` is why it was stopped, if it was."""
        job = assignment.job
        if not (outcome.body.is_plain and job.live.is_plain):
            self._discard.add(assignment, outcome)
        try:
            if outcome.ending is Ending.RETURNED:
                record_attempt(assignment, None, self._loop.now)
                if job.live.driver is not None:
                    job.live.driver.resolve(outcome.body)
                else:
                    self.finish_job(job, JobStatus.COMPLETED, outcome)
                return
            if reason is not None or outcome.error is None:
                outcome = stopped(job, reason, assignment.position)
            elif outcome.error.is_a(SoftTimeoutError):
                outcome = _past_soft_timeout(job, outcome.error)
            record_attempt(assignment, outcome.error, self._loop.now)
            self._fail_attempt(job, outcome)
        except BaseException as fault:  # Otherwise nothing would end the job.
            self.fail_undecided(job, fault)

    def fail_undecided(self, job: Job, fault: BaseException) -> None:
        """Fail a job whose follow-up could not be decided: nothing else would end it."""
        text = traceback_text(fault, fault.__traceback__)
        logger.error("cannot decide what follows an attempt: the job fails\n%s", text, extra={"job_id": job.job_id})
        failure = failed(JobError(f"cannot decide what follows the attempt: {repr_of(fault)}"))
        if job.state.status in TERMINAL:
            return
        if job.live.driver is not None:
            job.live.driver.attempt_failed(failure)
        else:
            self.fail_job(job, failure)

    def _fail_attempt(self, job: Job, outcome: Outcome) -> None:
        error = outcome.error
        assert error is not None, "an attempt that failed has an error"
        if error.code == "RATE_LIMITED":
            self._dispatcher.rate_limiter.pause(job, job.policy.limit_retry_after(error.retry_after))
        if job.live.driver is not None:
            job.live.driver.attempt_failed(outcome)
            return
        self.retry_or_end(job, outcome, error)

    def retry_or_end(self, job: Job, outcome: Outcome, error: ErrorFacts) -> None:
        """Retry a job that failed with `error`, or end it.

        In a shutdown that leaves jobs to the next host, one that is to be retried ends like those that wait already.
        """
        decision = self.decide(job, error, requeues=self.requeues)
        if decision.retry:
            job.record_error(error.code, error.text)  # A hook's error leaves no attempt that records it.
            self.retry_later(job, decision, self._dispatcher.push, error)
            if not self.allows_retries:
                self.fail_job(job, stopped(job, StopReason.SHUTDOWN))
        else:
            self.give_up(job, decision, outcome, failed_as(job, error))

    def decide(self, job: Job, error: ErrorFacts, *, requeues: bool = False) -> RetryDecision:
        """Decide whether an attempt that ended with `error` is retried; in a shutdown only if it `requeues` the job."""
        if error.ends == job.job_id:  # It ends the job, whatever its policy, and not only the attempt.
            return RetryDecision(retry=False, reason="the job was cancelled or is past its deadline")
        state = job.state
        decision = decide(job.policy, error=error, attempt=state.attempt, crashes=state.crashes)
        is_final = self.allows_retries or requeues or not decision.retry
        return decision if is_final else RetryDecision(retry=False, reason="the executor is shut down")

    def retry_later(
        self, job: Job, decision: RetryDecision, when_due: Callable[[Job], None], error: ErrorFacts | None
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

    def give_up(self, job: Job, decision: RetryDecision, outcome: Outcome, status: JobStatus | None = None) -> None:
        """End a job that is not retried, as `fail_job` does; quarantine it if the decision asks for that."""
        if decision.quarantine:
            self._intake.quarantined[job.job_id] = job
        self.fail_job(job, outcome, status)

    def fail_job(self, job: Job, outcome: Outcome, status: JobStatus | None = None) -> None:
        """End the job in `status`; by default FAILED, or CANCELLED if the error is a cancellation."""
        error = outcome.error
        assert error is not None, "a job that failed has an error"
        job.record_error(error.code, error.text)
        if status is None:
            status = JobStatus.CANCELLED if error.is_a(JobCancelledError) else JobStatus.FAILED
        self.finish_job(job, status, outcome)

    def finish_job(self, job: Job, status: JobStatus, outcome: Outcome) -> None:
        """Bring the job to a terminal state. Nothing else does this."""
        live = job.live
        if live.timers:
            for timer in live.timers.values():
                timer.cancel()
        if live.driver is not None:
            self._free_unused_slot(job)
        self._tracker.advance(job, status, outcome.error, records_processed=outcome.records)
        self._intake.leave(job)
        # Release what only a live job needs. The future holds the job, so the job must not hold the future.
        future, live.future = live.future, None
        if live.driver is not None or not (live.is_plain and outcome.body.is_plain):
            self._discard.add(future, live.payload, live.scope, live.driver, outcome)
        live.wants_slot = False
        live.payload = live.assignment = live.timers = live.checkpoint = live.scope = None
        future.settle(outcome)
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


def record_attempt(assignment: Assignment, error: ErrorFacts | None, now: Callable[[], float]) -> None:
    """Record a finished attempt in its job; `now` is asked for its end if the pool did not report one."""
    job, live = assignment.job, assignment.job.live
    ended_at = assignment.ended_at or now()
    started_at = assignment.started_at or ended_at
    asked_at = assignment.stop_asked_at
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
        None if error is None else error.code,
        None if error is None else error.text,
        assignment.node,
    )
    job.record_attempt(_new_attempt(Attempt, record))


_new_attempt: Any = tuple.__new__  # A call of the class would run Python.


def stopped(job: Job, reason: StopReason | None, position: str | None = None) -> Outcome:
    """Return the outcome of a job that was ended for `reason`. `position`: where its function was, as a traceback."""
    error = _stop_error(job, reason)
    if position and isinstance(error, JobTimeoutError):
        error.__cause__ = FunctionPosition(position)
    return failed(error)


def _stop_error(job: Job, reason: StopReason | None) -> JobTimeoutError | JobCancelledError:
    why_cancelled = job.live.future.why_cancelled()
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
            handover = "another host runs a job with this id, or may run it since the lease ended"
            why = handover if is_handover else "its executor was shut down"
            message = why_cancelled or f"job {job.job_id} was cancelled: {why}"
            return JobCancelledError(message, shutdown=True, ends=job.job_id)
        case StopReason.CANCEL | None:
            return JobCancelledError(why_cancelled or f"job {job.job_id} was cancelled", ends=job.job_id)


def failed_as(job: Job, error: ErrorFacts) -> JobStatus:
    """Return the final status of a job that failed with `error`: FAILED if the error is another job's cancellation."""
    cancelled = error.is_a(JobCancelledError) and error.ends in (None, job.job_id)
    return JobStatus.CANCELLED if cancelled else JobStatus.FAILED


def _past_soft_timeout(job: Job, cause: ErrorFacts) -> Outcome:
    """Return the outcome of an attempt that let SoftTimeoutError pass."""
    error = JobTimeoutError(f"ran longer than soft_timeout={job.soft_timeout} s")
    error.__cause__ = SoftTimeoutError("soft_timeout passed")
    if cause.traceback:
        error.__cause__.__cause__ = wire.RemoteTraceback(cause.traceback)
    return failed(error)
