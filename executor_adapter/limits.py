"""Attempts that run, and when each is to be interrupted or ended."""

from __future__ import annotations

import enum
from collections.abc import Callable

from executor_adapter.functions import function_key
from executor_adapter.pools.base import Assignment

NEVER = float("inf")

SHORT_RUN = 0.002
"""Seconds: functions that take less on average may have others lie ready behind them."""


class StopReason(enum.Enum):
    """Why an attempt is ended."""

    LIMIT = "past max_runtime"
    DEADLINE = "past the deadline over all attempts"
    CANCEL = "cancelled"


class _Limits:
    __slots__ = ("hard", "reason", "soft")

    def __init__(self, hard: float = NEVER, soft: float = NEVER) -> None:
        self.hard = hard
        self.soft = soft
        self.reason: StopReason | None = None


class RunningAttempts:
    """The attempts under way with their limits, in monotonic seconds.

    `due` is a time before which no limit can be reached. Most attempts end long before theirs, so nothing is sorted:
    when `due` comes all are looked at, and the next one is found.
    """

    def __init__(self) -> None:
        self.due = NEVER
        self._limits: dict[Assignment, _Limits] = {}

    def __contains__(self, assignment: Assignment) -> bool:
        return assignment in self._limits

    def add(self, assignment: Assignment, at: float, *, apply_max_runtime: bool) -> None:
        if assignment in self._limits:
            return  # it is being stopped already
        job = assignment.job
        limits = self._limits[assignment] = _Limits()
        if job.max_runtime is not None and apply_max_runtime:
            limits.hard = at + job.max_runtime
            self.due = min(self.due, limits.hard)
        if job.soft_timeout is not None:
            limits.soft = at + job.soft_timeout
            self.due = min(self.due, limits.soft)

    def remove(self, assignment: Assignment) -> StopReason | None:
        """The attempt is over; why it was stopped, if it was."""
        limits = self._limits.pop(assignment, None)
        return None if limits is None else limits.reason

    def stopping(self, assignment: Assignment, reason: StopReason) -> None:
        """It is being stopped; the first reason counts."""
        limits = self._limits.setdefault(assignment, _Limits())
        if limits.reason is None:
            limits.reason = reason

    def apply(
        self, now: float, interrupt: Callable[[Assignment], None], stop: Callable[[Assignment, StopReason], None]
    ) -> None:
        """Interrupt and stop what is past its limits; find the next time to look."""
        self.due = NEVER
        for assignment, limits in list(self._limits.items()):
            if limits.reason is not None:
                continue
            if limits.hard <= now:
                stop(assignment, StopReason.LIMIT)
                continue
            if limits.soft <= now:
                limits.soft = NEVER
                interrupt(assignment)
            self.due = min(self.due, limits.soft, limits.hard)


class RunTimes:
    """How long each function takes, as a moving average: whether others may lie ready behind it."""

    def __init__(self) -> None:
        self._seconds: dict[object, float] = {}

    def learn(self, assignment: Assignment, ended_at: float) -> None:
        if assignment.started_at is None:
            return
        key = function_key(assignment.job.function)
        took = ended_at - assignment.started_at
        known = self._seconds.get(key)
        if known is None and len(self._seconds) >= 1024:
            self._seconds.clear()  # functions made on the fly: none of them comes again
        self._seconds[key] = took if known is None else known + 0.3 * (took - known)

    def short(self, function: object) -> bool:
        """Whether it is known to be short; of a function that never ran nothing is known."""
        return self._seconds.get(function_key(function), NEVER) <= SHORT_RUN
