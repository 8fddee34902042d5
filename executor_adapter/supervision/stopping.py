"""Ends jobs before they are done: at a limit, by a cancel, at a shutdown, and when the supervisor fails."""

from __future__ import annotations

import functools
from collections.abc import Callable

from executor_adapter.exceptions import JobCancelledError, JobError, JobTimeoutError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import TERMINAL, Job, JobStatus
from executor_adapter.pools import Assignment, Recall, SupervisorLoop
from executor_adapter.supervision.follow_up import FollowUp
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.outcome import stop_error
from executor_adapter.supervision.pool_set import PoolSet
from executor_adapter.supervision.running_attempts import NEVER, RunningAttempts
from executor_adapter.supervision.stop_reason import StopReason

MAX_CANCEL_GRACE = 3.0
"""Max seconds of grace for a cancelled attempt: it must end within five seconds, the kill included."""


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
        close_pools: Callable[[], None],
    ) -> None:
        self.kill_grace = kill_grace
        """Seconds between asking an attempt to end and killing it."""
        self._loop = loop
        self._intake = intake
        self._pools = pools
        self._running = running
        self._follow_up = follow_up
        self._close_pools = close_pools

    # --- attempts ---

    def apply_limits(self, now: float) -> None:
        """Interrupt and stop the attempts that were past their limits at the monotonic time `now`."""
        if self._running.due <= now:
            self._running.apply(now, self._pools.interrupt, self._stop)

    def stop_attempt(self, job: Job, reason: StopReason) -> None:
        """End the running attempt of a driven job; its driver decides what follows."""
        if job.live.assignment is not None:
            self._stop(job.live.assignment, reason)

    def _stop(self, assignment: Assignment, reason: StopReason) -> None:
        self._running.mark_stopping(assignment, reason)
        if assignment.stop_asked_at is None:
            assignment.stop_asked_at = self._loop.now()
        grace = min(self.kill_grace, MAX_CANCEL_GRACE) if reason >= StopReason.SHUTDOWN else self.kill_grace
        self._pools.of(assignment.job).stop(assignment, grace=grace)

    # --- jobs ---

    def end(self, job: Job, reason: StopReason) -> None:
        """End a live job: at once if no attempt runs, else once its attempt is dead."""
        live = job.live
        if job.state.status in TERMINAL:
            return
        assignment: Assignment | None = live.assignment
        if assignment is not None and live.driver is not None:  # A recalled attempt would be started again.
            live.driver.expect_end(stop_error(job, reason))
            self._stop(assignment, reason)
        elif assignment is not None and not self._is_taken_back(assignment):
            self._stop(assignment, reason)
        else:
            self.end_unstarted(job, stop_error(job, reason))

    def _is_taken_back(self, assignment: Assignment) -> bool:
        return assignment not in self._running and self._pools.recall(assignment) is Recall.TAKEN_BACK

    def end_unstarted(self, job: Job, error: JobTimeoutError | JobCancelledError) -> None:
        """End a job without a running attempt."""
        driver = job.live.driver
        if driver is not None:
            driver.abort(error)
        else:
            self._follow_up.fail(job, error)

    def set_timers(self, job: Job) -> None:
        """Enforce the job's `queue_timeout` and `deadline`."""
        queued_at = job.live.queued_at
        if job.queue_timeout is not None:
            self._follow_up.set_timer(job, "queue", queued_at + job.queue_timeout, self._on_queue_timeout)
        if job.deadline is not None:
            near = self._running.near_limits.time_of(queued_at, job.deadline)
            if near != NEVER:
                self._follow_up.set_timer(job, "near deadline", near, self._on_near_deadline)
            self._follow_up.set_timer(job, "deadline", queued_at + job.deadline, self._on_deadline)

    def _on_queue_timeout(self, job: Job) -> None:
        assignment: Assignment | None = job.live.assignment
        if job.state.status is not JobStatus.PENDING:
            return
        if assignment is not None and (answer := self._pools.recall(assignment)) is not Recall.TAKEN_BACK:
            if answer is Recall.ASKED:  # `handed_back` ends the job if it was not begun.
                assignment.stop_reason = StopReason.QUEUE_TIMEOUT
            return
        self.end_unstarted(job, stop_error(job, StopReason.QUEUE_TIMEOUT))

    def _on_near_deadline(self, job: Job) -> None:
        used, deadline = self._loop.now() - job.live.queued_at, job.deadline or 0.0
        self._running.near_limits.note(job, "deadline", used, deadline)

    def _on_deadline(self, job: Job) -> None:
        self.end(job, StopReason.DEADLINE)

    # --- the executor ---

    def shut_down(self, cancel_pending: bool, cancel_running: bool) -> None:
        """End the jobs that the shutdown does not wait for; the pools close once no job is left."""
        if cancel_pending or cancel_running:
            self._follow_up.allows_retries = False
        for job in list(self._intake.jobs.values()):
            running = job.state.status is JobStatus.RUNNING
            if cancel_running or (cancel_pending and not running):
                self.end(job, StopReason.SHUTDOWN)
        if not self._intake.jobs:
            self._close_pools()

    def shut_down_at(self, when: float) -> None:
        """Cancel the jobs that have not ended at the monotonic time `when`."""
        self._loop.call_at(when, functools.partial(self.shut_down, cancel_pending=True, cancel_running=True))

    def fail_all(self, error: BaseException) -> None:
        """Fail every job, because the supervisor failed: otherwise callers would wait forever."""
        self._intake.close()
        for job in list(self._intake.jobs.values()):
            failure = JobError(f"the executor has failed: {repr_of(error)}")
            driver, future = job.live.driver, job.live.future
            if driver is not None:
                driver.abort(failure)
            if future is not None:
                future.settle(None, failure)
