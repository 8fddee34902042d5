"""The running attempts, and when each is to be interrupted or ended."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.pools import Assignment
from executor_adapter.supervision.stop_reason import StopReason

NEVER = float("inf")


class RunningAttempts:
    """Holds the running attempts; each carries its limits, in monotonic seconds.

    `due` is a time before which no limit can be reached. Most attempts end long before their limits, so nothing is
    sorted: when `due` comes, all are checked and the next time is computed.
    """

    def __init__(self) -> None:
        self.due = NEVER
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
        job = assignment.job
        if job.max_runtime is not None and apply_max_runtime:
            assignment.hard_limit = limit = at + job.max_runtime
            if limit < self.due:
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
        self, now: float, interrupt: Callable[[Assignment], None], stop: Callable[[Assignment, StopReason], None]
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
                assignment.soft_limit = NEVER
                interrupt(assignment)
            self.due = min(self.due, assignment.soft_limit, assignment.hard_limit, assignment.stall_limit)
