"""Ends attempts and jobs before they are done: at a limit, by a cancel, at a shutdown, if the supervisor fails."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable

from executor_adapter.exceptions import JobError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import TERMINAL, Job, JobStatus, LimitObserver, NearLimit
from executor_adapter.pools import Assignment, Recall, SupervisorLoop
from executor_adapter.pools.transport.envelope import Outcome, failed
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.outcome import FollowUp, StopReason, stopped
from executor_adapter.supervision.scheduling import NEVER, PoolSet

logger = logging.getLogger("executor_adapter")

BEGIN_INTERVAL = 0.01
"""Seconds after which a worker that had not begun a function at its soft_timeout is looked at again."""

MIN_NOTED = 64
"""Jobs near a limit that are kept before those that have ended are dropped."""
MAX_CANCEL_GRACE = 3.0
"""Max seconds of grace for a cancelled attempt: it must end within five seconds, the kill included."""


class NearLimits:
    """Notifies observers of each job that has used `share` of a time limit, and knows which jobs are that far now.

    `share` is between 0 and 1; None: nobody is notified. Supervisor thread only, except `count`.
    """

    def __init__(self, share: float | None = None) -> None:
        self.observers: list[LimitObserver] = []
        self._share = share
        # By reference to the job, which is not kept alive, since its arguments may be large: the limit and the attempt.
        self._noted: dict[weakref.ref[Job], tuple[str, int]] = {}
        self._prune_at = MIN_NOTED

    def time_of(self, since: float, limit: float) -> float:
        """Return when a limit of `limit` seconds that counts from `since` is near; NEVER where nobody is notified."""
        return NEVER if self._share is None else since + self._share * limit

    def note(self, job: Job, limit: str, used: float, of: float) -> None:
        """Notify the observers, unless the limit has passed already, as after a pause of the process."""
        if used >= of:
            return
        if len(self._noted) >= self._prune_at:
            self._noted = {job_ref: noted for job_ref, noted in self._noted.items() if _is_still_near(job_ref, *noted)}
            self._prune_at = max(MIN_NOTED, 2 * len(self._noted))
        self._noted[weakref.ref(job)] = (limit, job.state.attempt)
        near = NearLimit(job, limit, used, of, job.state.attempt)
        for observer in tuple(self.observers):
            try:
                observer(near)
            except Exception:
                logger.exception("an observer of limits failed", extra={"job_id": job.job_id})

    def count(self) -> int:
        """Return how many jobs are near a limit now. Any thread may call it."""
        return sum(_is_still_near(job_ref, *noted) for job_ref, noted in tuple(self._noted.items()))


def _is_still_near(job_ref: weakref.ref[Job], limit: str, attempt: int) -> bool:
    job = job_ref()
    if job is None or job.state.status in TERMINAL:
        return False
    return limit == "deadline" or (job.state.status is JobStatus.RUNNING and job.state.attempt == attempt)


class RunningAttempts(set[Assignment]):
    """The running attempts; each carries its limits, in monotonic seconds. Any thread may list them.

    `due` is a time before which no limit can be reached. Most attempts end long before their limits, so nothing is
    sorted: when `due` comes, all are checked and the next time is computed.
    """

    def __init__(self, near_limits: NearLimits | None = None) -> None:
        super().__init__()
        self.due = NEVER
        self.near_limits = near_limits or NearLimits()

    def begin(self, assignment: Assignment, at: float, *, apply_max_runtime: bool) -> None:
        """Add an attempt that started at `at`, and set its limits."""
        self.add(assignment)
        if assignment.stop_reason is StopReason.QUEUE_TIMEOUT:
            assignment.stop_reason = None  # It has begun after all, before its node was asked to give it back.
        job = assignment.job
        if job.max_runtime is not None and apply_max_runtime:
            assignment.hard_limit = at + job.max_runtime
            assignment.near_limit = near = self.near_limits.time_of(at, job.max_runtime)
            if (limit := min(near, assignment.hard_limit)) < self.due:
                self.due = limit
        if job.soft_timeout is not None:
            assignment.soft_limit = at + job.soft_timeout
            self.due = min(self.due, assignment.soft_limit)
        if job.stall_timeout is not None:
            self.note_progress(assignment, at)

    def note_progress(self, assignment: Assignment, at: float) -> None:
        """Restart `stall_timeout`, because the function has reported progress."""
        if assignment.job.stall_timeout is not None:
            assignment.stall_limit = at + assignment.job.stall_timeout
            self.due = min(self.due, assignment.stall_limit)

    def mark_stopping(self, assignment: Assignment, reason: StopReason) -> None:
        """Note that an attempt is being stopped; the highest reason counts."""
        self.add(assignment)
        if assignment.stop_reason is None or assignment.stop_reason < reason:
            assignment.stop_reason = reason

    def apply(
        self, now: float, interrupt: Callable[[Assignment], bool], stop: Callable[[Assignment, StopReason], None]
    ) -> None:
        """Interrupt and stop all attempts that are past a limit, and find the next time to look."""
        self.due = NEVER
        for assignment in list(self):
            if assignment.stop_reason is not None:
                continue
            if assignment.hard_limit <= now:
                # A thread begins a moment after it was given the attempt; its function may take all of max_runtime.
                began, limit = assignment.started_at or 0.0, assignment.job.max_runtime or 0.0
                assignment.hard_limit = max(assignment.hard_limit, began + limit)
            if min(assignment.hard_limit, assignment.stall_limit) <= now:
                stop(assignment, StopReason.LIMIT if assignment.hard_limit <= now else StopReason.STALL)
                continue
            if assignment.soft_limit <= now:
                # A worker begins a moment after it was given the attempt, which may be later than this limit.
                assignment.soft_limit = NEVER if interrupt(assignment) else now + BEGIN_INTERVAL
            if assignment.near_limit <= now:
                assignment.near_limit = NEVER
                self._note_near(assignment, now)
            self.due = min(
                self.due, assignment.soft_limit, assignment.near_limit, assignment.hard_limit, assignment.stall_limit
            )

    def _note_near(self, assignment: Assignment, now: float) -> None:
        limit = assignment.job.max_runtime or 0.0
        self.near_limits.note(assignment.job, "max_runtime", now - (assignment.hard_limit - limit), limit)


class Stopping:
    """Ends attempts and jobs early. Supervisor thread only."""

    def __init__(
        self,
        loop: SupervisorLoop,
        intake: JobIntake,
        pools: PoolSet,
        running: RunningAttempts,
        follow_up: FollowUp,
        *,
        kill_grace: float,
    ) -> None:
        self.kill_grace = kill_grace
        """Seconds between asking an attempt to end and killing it."""
        self._loop = loop
        self._intake = intake
        self._pools = pools
        self._running = running
        self._follow_up = follow_up

    # --- attempts ---

    def apply_limits(self, now: float) -> None:
        """Interrupt and stop the attempts that were past their limits at the monotonic time `now`."""
        self._running.apply(now, lambda assignment: self._pools.of(assignment.job).interrupt(assignment), self._stop)

    def stop_attempt(self, job: Job, reason: StopReason) -> None:
        """End the running attempt of a driven job; its driver decides what follows."""
        if job.live.assignment is not None:
            self._stop(job.live.assignment, reason)

    def _stop(self, assignment: Assignment, reason: StopReason) -> None:
        self._running.mark_stopping(assignment, reason)
        if assignment.stop_asked_at is None:
            assignment.stop_asked_at = self._loop.now()
        grace = min(self.kill_grace, MAX_CANCEL_GRACE) if reason >= StopReason.HANDOVER else self.kill_grace
        self._pools.of(assignment.job).stop(assignment, grace=grace)

    # --- jobs ---

    def end_job(self, job: Job, reason: StopReason) -> None:
        """End a live job: at once if no attempt runs, else once its attempt is dead."""
        live = job.live
        if job.state.status in TERMINAL:
            return
        assignment: Assignment | None = live.assignment
        if assignment is not None and live.driver is not None:  # A recalled attempt would be started again.
            live.driver.expect_end(stopped(job, reason))
            self._stop(assignment, reason)
        elif assignment is not None and (
            assignment in self._running or self._recall(assignment) is not Recall.TAKEN_BACK
        ):
            self._stop(assignment, reason)
        else:
            self.end_unstarted_job(job, stopped(job, reason))

    def _recall(self, assignment: Assignment) -> Recall:
        return self._pools.of(assignment.job).recall(assignment)

    def end_unstarted_job(self, job: Job, outcome: Outcome) -> None:
        """End a job without a running attempt."""
        driver = job.live.driver
        if driver is not None:
            driver.abort(outcome)
        else:
            self._follow_up.fail_job(job, outcome)

    def set_timers(self, job: Job) -> None:
        """Enforce the job's `queue_timeout` and `deadline`."""
        queued_at = job.live.queued_at
        if job.queue_timeout is not None:
            self._follow_up.set_timer(job, "queue", queued_at + job.queue_timeout, self._on_queue_timeout)
        if job.deadline is not None:
            near = self._running.near_limits.time_of(queued_at, job.deadline)
            if near != NEVER:
                self._follow_up.set_timer(job, "near deadline", near, self._on_near_deadline)
            end = functools.partial(self.end_job, reason=StopReason.DEADLINE)
            self._follow_up.set_timer(job, "deadline", queued_at + job.deadline, end)

    def _on_queue_timeout(self, job: Job) -> None:
        assignment: Assignment | None = job.live.assignment
        if job.state.status is not JobStatus.PENDING:
            return
        if assignment is not None and (answer := self._recall(assignment)) is not Recall.TAKEN_BACK:
            if answer is Recall.ASKED:  # `handed_back` ends the job if it was not begun.
                assignment.stop_reason = StopReason.QUEUE_TIMEOUT
            return
        self.end_unstarted_job(job, stopped(job, StopReason.QUEUE_TIMEOUT))

    def _on_near_deadline(self, job: Job) -> None:
        self._running.near_limits.note(job, "deadline", self._loop.now() - job.live.queued_at, job.deadline or 0.0)

    # --- the executor ---

    def shut_down(self, cancel_pending: bool, cancel_running: bool) -> None:
        """End the jobs that the shutdown does not wait for; the pools close once no job is left."""
        if cancel_pending or cancel_running:
            self._follow_up.end_retries()
        for job in list(self._intake.jobs.values()):
            running = job.state.status is JobStatus.RUNNING
            if cancel_running or (cancel_pending and not running):
                self.end_job(job, StopReason.SHUTDOWN)
        if not self._intake.jobs:
            self._pools.close()

    def shut_down_at(self, when: float) -> None:
        """Cancel the jobs that have not ended at the monotonic time `when`."""
        self._loop.call_at(when, functools.partial(self.shut_down, cancel_pending=True, cancel_running=True))

    def fail_all(self, error: BaseException) -> None:
        """Fail every job, because the supervisor failed: otherwise callers would wait forever."""
        self._intake.close()
        for job in list(self._intake.jobs.values()):
            failure = failed(JobError(f"the executor has failed: {repr_of(error)}"))
            driver, future = job.live.driver, job.live.future
            if driver is not None:
                driver.abort(failure)
            if future is not None:
                future.settle(failure)
