"""Limits how many jobs of a tool run at once, and how many start in a second."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping

from executor_adapter.job import TERMINAL, Job, ToolLimit

_Turn = tuple[int, float, int, Job]
"""A job that was held back, and what it is sorted by: priority (highest first), when it was queued, and a number."""


class _ToolState:
    """One tool's state: a token bucket (of `burst` tokens, refilled at `rate`), what runs and what is held back."""

    def __init__(self, limit: ToolLimit, now: float) -> None:
        self.max_concurrent = limit.max_concurrent
        self.rate = None if limit.rate is None else limit.rate * (1 - (limit.buffer or 0.0))
        self.burst = float(limit.burst)
        self.tokens = self.burst
        self.filled_at = now
        self.paused_until = now
        self.running = 0
        self.timer_set = False
        self.waiting: list[_Turn] = []
        """A heap."""
        self.released: dict[Job, _Turn] = {}
        """Jobs that may be tried again, and have not been yet. More than one only where each comes before the last."""

    def opens_at(self, now: float) -> float:
        """Return when the rate lets the next job start: `now` or earlier, or later."""
        if self.paused_until > now:
            return self.paused_until
        if self.rate is None:
            return now
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        # Slightly less than one token counts as one: the clock is a float.
        return now if self.tokens > 1 - 1e-9 else now + (1 - self.tokens) / self.rate

    def is_full(self) -> bool:
        return self.max_concurrent is not None and self.running >= self.max_concurrent


class RateLimiter:
    """Holds back jobs whose tool is at its limit, and releases them in order. Supervisor thread only.

    The order is the highest priority first, then the job that was queued first. `release` puts a job back before all
    others of its priority. So the next job is released only when the last one has been tried or skipped, unless it is
    to start before that one: otherwise they would overtake one another.
    """

    def __init__(
        self,
        limits: Mapping[str, ToolLimit],
        *,
        now: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
        release: Callable[[Job], None],
    ) -> None:
        self._now = now
        self._call_at = call_at
        self._release = release
        self._numbers = itertools.count()
        self._tools = {name: _ToolState(limit, now()) for name, limit in limits.items()}

    def limits(self, job: Job) -> bool:
        """Return whether the job's tool has limits at all."""
        return job.tool_name in self._tools

    def start(self, job: Job) -> bool:
        """Return whether the job may start; it then counts as running until `end`. Otherwise it is held back."""
        tool = self._tools.get(job.tool_name or "")
        if tool is None:
            return True
        turn = tool.released.pop(job, None) or (-job.priority, job.live.queued_at, next(self._numbers), job)
        may_start = not tool.is_full() and tool.opens_at(now := self._now()) <= now and _is_first(turn, tool)
        if may_start:
            tool.tokens -= 1
            tool.running += 1
        else:
            heapq.heappush(tool.waiting, turn)
        self._release_next(tool)
        return may_start

    def end(self, job: Job) -> None:
        """Note that an attempt that `start` allowed has ended, or did not begin."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.running -= 1
            self._release_next(tool)

    def skip(self, job: Job) -> None:
        """Note that a job, which may have been released, needs no start any more."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None and tool.released.pop(job, None) is not None:
            self._release_next(tool)

    def pause(self, job: Job, seconds: float) -> None:
        """Start no job of this job's tool for so long: the remote side asked for it."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.paused_until = max(tool.paused_until, self._now() + seconds)

    def _release_next(self, tool: _ToolState) -> None:
        """Release the first job that is held back, if it may start; else look again when the rate allows it."""
        waiting = tool.waiting
        while waiting and needs_no_slot(waiting[0][-1]):
            heapq.heappop(waiting)
        if not waiting or tool.is_full() or (tool.released and min(tool.released.values()) < waiting[0]):
            return
        now = self._now()
        opens_at = tool.opens_at(now)
        if opens_at <= now:
            turn = heapq.heappop(waiting)
            tool.released[turn[-1]] = turn
            self._release(turn[-1])
        elif not tool.timer_set:
            tool.timer_set = True
            self._call_at(opens_at, lambda: self._on_timer(tool))

    def _on_timer(self, tool: _ToolState) -> None:
        tool.timer_set = False
        self._release_next(tool)


def _is_first(turn: _Turn, tool: _ToolState) -> bool:
    """Return whether no job that is held back or released comes before this one."""
    return all(turn < other for other in (*tool.waiting[:1], *tool.released.values()))


def needs_no_slot(job: Job) -> bool:
    """Return whether a queued job needs no slot any more: it has ended, or its driver wants none."""
    live = job.live
    return job.state.status in TERMINAL or (live.driver is not None and not live.driver.wants_slot)
