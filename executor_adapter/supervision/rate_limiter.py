"""How many jobs of a tool run at once, and how many start in a second."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from executor_adapter.job.model import Job
from executor_adapter.job.status import TERMINAL
from executor_adapter.job.validation import check_count, check_rate

_Turn = tuple[int, float, int, Job]
"""A job that was kept back, and what it is sorted by: priority, the highest first, when it was queued, and a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimit:
    """Limits of one tool's jobs.

    `max_concurrent`: attempts at once; None: no limit. `rate`: starts a second, on average, of which the share
    `buffer` is left unused (None: the settings' `collection.rate_limit_buffer`); None: no limit. `burst`: starts that
    may follow at once after a pause.
    """

    max_concurrent: int | None = None
    rate: float | None = None
    burst: int = 1
    buffer: float | None = None

    def __post_init__(self) -> None:
        if self.max_concurrent is not None:
            check_count("max_concurrent", self.max_concurrent, "lets no job start", or_none=", or None")
        if self.rate is not None:
            check_rate("rate", self.rate)
        check_count("burst", self.burst, "lets no job start")
        if self.buffer is not None and not 0 <= self.buffer < 1:
            raise ValueError(f"buffer={self.buffer} is no share: give 0 to below 1")


class _Tool:
    """One tool's state: a token bucket (of `burst` tokens, refilled at `rate`), what runs and what was kept back."""

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
        self.let_out: dict[Job, _Turn] = {}
        """Those that may be tried again, and have not been yet. More than one only where each comes before the last."""

    def opens_at(self, now: float) -> float:
        """When the next job may start as far as the rate goes: `now` or before, or later."""
        if self.paused_until > now:
            return self.paused_until
        if self.rate is None:
            return now
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        # A hair less than one is one: the clock is a float.
        return now if self.tokens > 1 - 1e-9 else now + (1 - self.tokens) / self.rate

    def full(self) -> bool:
        return self.max_concurrent is not None and self.running >= self.max_concurrent


class Throttle:
    """Keeps back jobs whose tool is at its limit, and lets them out in their turn: the highest priority first, then the
    one that was queued first. `call_at` and `let_go` are the supervisor's: a job that may be tried again is given to
    `let_go`, which puts it before all others of its priority.

    So the next is let out only when that one has been tried or passed over, unless it is to start before it: they would
    overtake one another.
    """

    def __init__(
        self,
        limits: Mapping[str, ToolLimit],
        *,
        now: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
        let_go: Callable[[Job], None],
    ) -> None:
        self._now = now
        self._call_at = call_at
        self._let_go = let_go
        self._numbers = itertools.count()
        self._tools = {name: _Tool(limit, now()) for name, limit in limits.items()}

    def limits(self, job: Job) -> bool:
        """Whether the job's tool has limits at all."""
        return job.tool_name in self._tools

    def start(self, job: Job) -> bool:
        """Whether the job may start; if so it counts as running until `end`. Else it is kept back."""
        tool = self._tools.get(job.tool_name or "")
        if tool is None:
            return True
        turn = tool.let_out.pop(job, None) or (-job.priority, job.live.queued_at, next(self._numbers), job)
        may_start = not tool.full() and tool.opens_at(now := self._now()) <= now and _is_first(turn, tool)
        if may_start:
            tool.tokens -= 1
            tool.running += 1
        else:
            heapq.heappush(tool.waiting, turn)
        self._let_next_out(tool)
        return may_start

    def end(self, job: Job) -> None:
        """An attempt that `start` let through is over, or did not begin after all."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.running -= 1
            self._let_next_out(tool)

    def passed_over(self, job: Job) -> None:
        """A job that may have been let out wants to start no more."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None and tool.let_out.pop(job, None) is not None:
            self._let_next_out(tool)

    def pause(self, job: Job, seconds: float) -> None:
        """The job's tool asked to be left alone for so long."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.paused_until = max(tool.paused_until, self._now() + seconds)

    def _let_next_out(self, tool: _Tool) -> None:
        """Let out the first of those kept back, if it may start; look again when the rate lets it."""
        waiting = tool.waiting
        while waiting and wants_no_start(waiting[0][-1]):
            heapq.heappop(waiting)
        if not waiting or tool.full() or (tool.let_out and min(tool.let_out.values()) < waiting[0]):
            return
        now = self._now()
        opens_at = tool.opens_at(now)
        if opens_at <= now:
            turn = heapq.heappop(waiting)
            tool.let_out[turn[-1]] = turn
            self._let_go(turn[-1])
        elif not tool.timer_set:
            tool.timer_set = True
            self._call_at(opens_at, lambda: self._timer_fired(tool))

    def _timer_fired(self, tool: _Tool) -> None:
        tool.timer_set = False
        self._let_next_out(tool)


def _is_first(turn: _Turn, tool: _Tool) -> bool:
    """Whether none of those that were kept back, or let out, comes before it."""
    return all(turn < other for other in (*tool.waiting[:1], *tool.let_out.values()))


def wants_no_start(job: Job) -> bool:
    """Whether a job that waits is to start no more: it is over, or its driver wants no slot."""
    live = job.live
    return job.state.status in TERMINAL or (live.driver is not None and not live.driver.wants_slot)
