"""Ends attempts and jobs before they are done: at a limit, by a cancel, at a shutdown, if the supervisor fails."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator

from executor_adapter.exceptions import JobError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import TERMINAL, Job, JobStatus, NearLimit
from executor_adapter.pools.base import Assignment, Recall
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.transport.envelope import Outcome, failed
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.outcome import FollowUp, StopReason, stopped
from executor_adapter.supervision.scheduling import NEVER, PoolSet

logger = logging.getLogger("executor_adapter")

BEGIN_INTERVAL = 0.01
"""Seconds after which a worker that had not begun a function at its soft_timeout is looked at again."""

MAX_CANCEL_GRACE = 3.0
"""Max seconds of grace for a cancelled attempt: it must end within five seconds, the kill included."""


def near_limits(running: Iterable[Assignment], jobs: Iterable[Job], share: float, now: float) -> Iterator[NearLimit]:
    """Yield each limit of which `share` is used, and that has not passed, of running attempts and of live jobs."""
    for assignment in running:
        job, limit = assignment.job, assignment.job.max_runtime
        if limit is not None and share * limit <= (used := now - (assignment.hard_limit - limit)) < limit:
            yield NearLimit(job, "max_runtime", used, limit, assignment.number)
    for job in jobs:
        limit, timer = job.deadline, (job.live.timers or {}).get("deadline")
        if limit is not None and timer is not None and share * limit <= (used := now - (timer.when - limit)) < limit:
            yield NearLimit(job, "deadline", used, limit, 0)


class RunningAttempts(set[Assignment]):
    """The running attempts; each carries its limits, in monotonic seconds. Any thread may list them.

    `due` is a time before which no limit can be reached. Most attempts end long before their limits, so nothing is
    sorted: when `due` comes, all are checked and the next time is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.due = NEVER

    def begin(self, assignment: Assignment, at: float, *, apply_max_runtime: bool) -> None:
        """Add an attempt that started at `at`, and set its limits."""
        self.add(assignment)
        if assignment.stop_reason is StopReason.QUEUE_TIMEOUT:
            assignment.stop_reason = None  # It has begun after all, before its node was asked to give it back.
        job = assignment.job
        if job.max_runtime is not None and apply_max_runtime:
            assignment.hard_limit = at + job.max_runtime
            self.due = min(self.due, assignment.hard_limit)
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
            self.due = min(self.due, assignment.soft_limit, assignment.hard_limit, assignment.stall_limit)


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
            assignment in self._running or self._pools.of(job).recall(assignment) is not Recall.TAKEN_BACK
        ):
            self._stop(assignment, reason)
        else:
            self.end_unstarted_job(job, stopped(job, reason))

    def end_unstarted_job(self, job: Job, outcome: Outcome) -> None:
        """End a job without a running attempt."""
        driver = job.live.driver
        if driver is not None:
            job.live.wants_slot = False
            driver.abort(outcome)
        else:
            self._follow_up.fail_job(job, outcome)

    def set_timers(self, job: Job) -> None:
        """Enforce the job's `queue_timeout` and `deadline`."""
        queued_at = job.live.queued_at
        if job.queue_timeout is not None:
            self._follow_up.set_timer(job, "queue", queued_at + job.queue_timeout, self._on_queue_timeout)
        if job.deadline is not None:
            end = functools.partial(self.end_job, reason=StopReason.DEADLINE)
            self._follow_up.set_timer(job, "deadline", queued_at + job.deadline, end)

    def _on_queue_timeout(self, job: Job) -> None:
        assignment: Assignment | None = job.live.assignment
        if job.state.status is not JobStatus.PENDING or job.state.attempt:
            return  # Its first attempt has begun; a later one may wait for longer.
        if assignment is not None and (answer := self._pools.of(job).recall(assignment)) is not Recall.TAKEN_BACK:
            if answer is Recall.ASKED:  # `handed_back` ends the job if it was not begun.
                assignment.stop_reason = StopReason.QUEUE_TIMEOUT
            return
        self.end_unstarted_job(job, stopped(job, StopReason.QUEUE_TIMEOUT))

    # --- the executor ---

    def shut_down(self, cancel_pending: bool, cancel_running: bool) -> None:
        """End the jobs that the shutdown does not wait for; the pools close once no job is left."""
        self._follow_up.allows_retries &= not (cancel_pending or cancel_running)
        for job in list(self._intake.jobs.values()):
            if cancel_running or (cancel_pending and job.state.status is not JobStatus.RUNNING):
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
