"""The running attempts, when each is to be interrupted or ended, and which jobs are near a time limit."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from executor_adapter.job import TERMINAL, Job, JobStatus, LimitObserver, NearLimit
from executor_adapter.pools import Assignment
from executor_adapter.supervision.stop_reason import StopReason

logger = logging.getLogger("executor_adapter")

NEVER = float("inf")

BEGIN_INTERVAL = 0.01
"""Seconds after which a worker that had not begun a function at its soft_timeout is looked at again."""

MIN_NOTED = 64
"""Jobs near a limit that are kept before those that have ended are dropped."""


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


class RunningAttempts:
    """Holds the running attempts; each carries its limits, in monotonic seconds.

    `due` is a time before which no limit can be reached. Most attempts end long before their limits, so nothing is
    sorted: when `due` comes, all are checked and the next time is computed.
    """

    def __init__(self, near_limits: NearLimits | None = None) -> None:
        self.due = NEVER
        self.near_limits = near_limits or NearLimits()
        self._attempts: set[Assignment] = set()

    def snapshot(self) -> list[Assignment]:
        """Return the attempts that run now. Any thread may call it."""
        return list(self._attempts)

    def __bool__(self) -> bool:
        return bool(self._attempts)

    def __contains__(self, assignment: Assignment) -> bool:
        return assignment in self._attempts

    def add(self, assignment: Assignment, at: float, *, apply_max_runtime: bool) -> None:
        """Add an attempt that started at `at`, and set its limits."""
        self._attempts.add(assignment)
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

    def remove(self, assignment: Assignment) -> StopReason | None:
        """Remove a finished attempt, and return why it was stopped, if it was."""
        self._attempts.discard(assignment)
        reason: StopReason | None = assignment.stop_reason
        return reason

    def mark_stopping(self, assignment: Assignment, reason: StopReason) -> None:
        """Note that an attempt is being stopped; the highest reason counts."""
        self._attempts.add(assignment)
        if assignment.stop_reason is None or assignment.stop_reason < reason:
            assignment.stop_reason = reason

    def apply(
        self, now: float, interrupt: Callable[[Assignment], bool], stop: Callable[[Assignment, StopReason], None]
    ) -> None:
        """Interrupt and stop all attempts that are past a limit, and find the next time to look."""
        self.due = NEVER
        for assignment in list(self._attempts):
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
