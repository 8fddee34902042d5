"""How many jobs of a tool run at once, and how many start in a second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from executor_adapter.job import Job


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
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"max_concurrent={self.max_concurrent} lets no job start: give at least 1, or None")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate={self.rate} lets no job start: give more than 0, or None")
        if self.burst < 1:
            raise ValueError(f"burst={self.burst} lets no job start: give at least 1")
        if self.buffer is not None and not 0 <= self.buffer < 1:
            raise ValueError(f"buffer={self.buffer} is no share: give 0 to below 1")


class _Tool:
    """One tool's state: a token bucket (of `burst` tokens, refilled at `rate`), what runs and what waits."""

    def __init__(self, limit: ToolLimit, now: float) -> None:
        self.max_concurrent = limit.max_concurrent
        self.rate = None if limit.rate is None else limit.rate * (1 - (limit.buffer or 0.0))
        self.burst = float(limit.burst)
        self.tokens = self.burst
        self.filled_at = now
        self.paused_until = now
        self.running = 0
        self.timer_set = False
        self.waiting: deque[Job] = deque()

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
    """Keeps back jobs whose tool is at its limit. `call_at` and `let_go` are the supervisor's: a job that may be tried
    again is given to `let_go`."""

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
        self._tools = {name: _Tool(limit, now()) for name, limit in limits.items()}

    def limits(self, job: Job) -> bool:
        """Whether the job's tool has limits at all."""
        return job.tool_name in self._tools

    def start(self, job: Job) -> bool:
        """Whether the job may start; if so it counts as running until `end`. Else it is kept back."""
        tool = self._tools.get(job.tool_name or "")
        if tool is None:
            return True
        now = self._now()
        opens_at = tool.opens_at(now)
        if tool.full() or opens_at > now:
            tool.waiting.append(job)
            if not tool.full():
                self._try_at(tool, opens_at)
            return False
        tool.tokens -= 1
        tool.running += 1
        return True

    def end(self, job: Job) -> None:
        """An attempt that `start` let through is over, or did not begin after all."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.running -= 1
            self._try(tool)

    def pause(self, job: Job, seconds: float) -> None:
        """The job's tool asked to be left alone for so long."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.paused_until = max(tool.paused_until, self._now() + seconds)

    def _try(self, tool: _Tool) -> None:
        """Let go the first of those kept back, if it may start; the others follow one by one."""
        if not tool.waiting or tool.full():
            return
        now = self._now()
        opens_at = tool.opens_at(now)
        if opens_at <= now:
            self._let_go(tool.waiting.popleft())
        if tool.waiting:
            self._try_at(tool, opens_at)

    def _try_at(self, tool: _Tool, when: float) -> None:
        if not tool.timer_set:
            tool.timer_set = True
            self._call_at(when, lambda: self._timer_fired(tool))

    def _timer_fired(self, tool: _Tool) -> None:
        tool.timer_set = False
        self._try(tool)
