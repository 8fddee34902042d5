"""Attempts that run, and when each is to be interrupted or ended."""

from __future__ import annotations

import enum
import types
import weakref
from collections.abc import Callable

from executor_adapter.job.functions import function_key
from executor_adapter.pools.base import Assignment

NEVER = float("inf")

SHORT_RUN = 0.002
"""Seconds: functions that take less on average may have others lie ready behind them."""


class StopReason(enum.IntEnum):
    """Why an attempt is ended. A later one outweighs an earlier: who cancels what is past its limit wants no retry."""

    LIMIT = enum.auto()
    """Past max_runtime."""
    STALL = enum.auto()
    """No progress within stall_timeout."""
    DEADLINE = enum.auto()
    """Past the deadline over all attempts."""
    SHUTDOWN = enum.auto()
    """Its executor does not wait for it, or has to let go of it."""
    CANCEL = enum.auto()
    """Cancelled."""


class RunningAttempts:
    """The attempts under way; each carries its limits, in monotonic seconds.

    `due` is a time before which no limit can be reached. Most attempts end long before theirs, so nothing is sorted:
    when `due` comes all are looked at, and the next one is found.
    """

    def __init__(self) -> None:
        self.due = NEVER
        self._attempts: set[Assignment] = set()

    def snapshot(self) -> list[Assignment]:
        """Those under way now; from any thread."""
        return list(self._attempts)

    def __contains__(self, assignment: Assignment) -> bool:
        return assignment in self._attempts

    def add(self, assignment: Assignment, at: float, *, apply_max_runtime: bool) -> None:
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
            self.alive(assignment, at)

    def alive(self, assignment: Assignment, at: float) -> None:
        """The function has shown a sign of life."""
        if assignment.job.stall_timeout is not None:
            assignment.stall_limit = at + assignment.job.stall_timeout
            self.due = min(self.due, assignment.stall_limit)

    def remove(self, assignment: Assignment) -> StopReason | None:
        """The attempt is over; why it was stopped, if it was."""
        self._attempts.discard(assignment)
        reason: StopReason | None = assignment.stop_reason
        return reason

    def stopping(self, assignment: Assignment, reason: StopReason) -> None:
        """It is being stopped; the weightiest reason counts."""
        self._attempts.add(assignment)
        if assignment.stop_reason is None or assignment.stop_reason < reason:
            assignment.stop_reason = reason

    def apply(
        self, now: float, interrupt: Callable[[Assignment], None], stop: Callable[[Assignment, StopReason], None]
    ) -> None:
        """Interrupt and stop what is past its limits; find the next time to look."""
        self.due = NEVER
        for assignment in list(self._attempts):
            if assignment.stop_reason is not None:
                continue
            if min(assignment.hard_limit, assignment.stall_limit) <= now:
                stop(assignment, StopReason.LIMIT if assignment.hard_limit <= now else StopReason.STALL)
                continue
            if assignment.soft_limit <= now:
                assignment.soft_limit = NEVER
                interrupt(assignment)
            self.due = min(self.due, assignment.soft_limit, assignment.hard_limit, assignment.stall_limit)


class RunTime:
    """How long one function takes, as a moving average."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = NEVER

    def learn(self, took: float) -> None:
        self.seconds = took if self.seconds == NEVER else self.seconds + 0.3 * (took - self.seconds)


class RunTimes:
    """The run time of each function; of one that never ran nothing is known, and it is not taken to be short."""

    def __init__(self) -> None:
        self._by_function: dict[object, RunTime] = {}

    def of(self, function: object) -> RunTime:
        # Here what `function_key` gives for the common case: a call of it would take as long as all the rest.
        key = weakref.ref(function) if type(function) is types.FunctionType else function_key(function)
        known = self._by_function.get(key)
        if known is None:
            if len(self._by_function) >= 1024:
                self._by_function.clear()  # functions made on the fly: none of them comes again, and most are gone
            known = self._by_function[key] = RunTime()
        return known
