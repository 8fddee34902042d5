"""The state of one tool in an executor: what runs, what is held back, and why."""

from __future__ import annotations

import math
from collections import deque

from executor_adapter.job import Job, ToolLimit
from executor_adapter.supervision.tools.demand import ToolDemand

START_SECONDS = 1.0
"""Seconds after which a start that was shared out and not used is lost."""

NO_LIMIT = ToolLimit()

Turn = tuple[int, float, int, Job]
"""A job that was held back, and what it is sorted by: priority (highest first), when it was queued, and a number."""


class ToolState:
    """What runs of one tool, what is held back, and its limit, which holds for this executor alone.

    The limit is a number of attempts and a token bucket (of `burst` tokens, refilled at `rate`).
    """

    def __init__(self, name: str, limit: ToolLimit, now: float) -> None:
        self.name = name
        self.own_limit = limit
        self.closed_until = now
        """No job starts before this: the remote side asked for it."""
        self.is_paused = False
        """Whether somebody has paused the tool in a store that this executor shares."""
        self.running: set[Job] = set()
        self.timer_set = False
        self.waiting: list[Turn] = []
        """A heap."""
        self.released: dict[Job, Turn] = {}
        """Jobs that may be tried again, and have not been yet. More than one only where each comes before the last."""
        self._rate = None if limit.rate is None else limit.rate * (1 - (limit.buffer or 0.0))
        self._tokens = float(limit.burst)
        self._filled_at = now

    @property
    def is_limited(self) -> bool:
        """Whether jobs of the tool may be held back."""
        return True

    def first(self) -> Job | None:
        """Return the job that starts next of those that are held back or released."""
        turn = min((*self.waiting[:1], *self.released.values()), default=None)
        return None if turn is None else turn[-1]

    def opens_at(self, now: float) -> float:
        """Return when the next job may start: `now` or earlier, or later; infinite where that is not known."""
        if self.closed_until > now:
            return self.closed_until
        if self._rate is None:
            return now
        self._tokens = min(float(self.own_limit.burst), self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        # Slightly less than one token counts as one: the clock is a float.
        return now if self._tokens > 1 - 1e-9 else now + (1 - self._tokens) / self._rate

    def is_full(self) -> bool:
        """Return whether as many run as may."""
        limit = self.own_limit.max_concurrent
        return limit is not None and len(self.running) >= limit

    def started(self, job: Job) -> None:
        """Count a start."""
        self._tokens -= 1
        self.running.add(job)

    def ended(self, job: Job) -> None:
        """Note that an attempt has ended, or did not begin."""
        self.running.discard(job)

    def close(self, now: float, seconds: float) -> None:
        """Start nothing for so long."""
        self.closed_until = max(self.closed_until, now + seconds)


class SharedToolState(ToolState):
    """A tool whose limit holds over all executors of a store. This executor starts what its share allows.

    It alone knows how many of its slots are in use, so it alone gives them up: `slots` never rises but by a share, and
    the store learns of each change by the next demand.
    """

    def __init__(self, name: str, limit: ToolLimit, now: float) -> None:
        super().__init__(name, limit, now)
        self.limit = limit
        """The limit that holds now: this executor's own, or the one that was set in the store."""
        self.slots = 0
        """Slots that this executor holds."""
        self.known_until = -math.inf
        """Until when `is_paused` and `limit` are known to hold."""
        self._give_up = 0
        self._starts: deque[float] = deque()
        """When each start that it holds is lost."""
        self._close_for = 0.0
        self._shares = 0
        self._answered = 0
        """How many of the shares the last demand knew of: each has to be answered, for the store waits for that."""
        self._said: ToolDemand | None = None

    @property
    def is_limited(self) -> bool:
        return self.is_paused or self.limit.max_concurrent is not None or self.limit.rate is not None

    @property
    def is_counted(self) -> bool:
        """Whether slots or starts are shared out."""
        return self.limit.max_concurrent is not None or self.limit.rate is not None

    def opens_at(self, now: float) -> float:
        if self.is_paused or self.known_until < now:
            return math.inf
        if self.closed_until > now:
            return self.closed_until
        if self.limit.rate is None:
            return now
        self._drop_lost_starts(now)
        return now if self._starts else math.inf

    def is_full(self) -> bool:
        return self.is_counted and len(self.running) >= self.slots

    def started(self, job: Job) -> None:
        self.running.add(job)
        if self.limit.rate is not None and self._starts:
            self._starts.popleft()

    def ended(self, job: Job) -> None:
        super().ended(job)
        if self._give_up and self.slots > len(self.running):
            self._give_up -= 1
            self.slots -= 1

    def close(self, now: float, seconds: float) -> None:
        super().close(now, seconds)
        self._close_for = max(self._close_for, seconds)

    def receive(self, now: float, *, slots: int, starts: int, give_up: int) -> None:
        """Add to the share, or note that slots are to be given up as soon as they are free."""
        self._shares += 1
        self.slots += slots
        self._starts.extend([now + START_SECONDS] * starts)
        free = min(give_up, max(0, self.slots - len(self.running)))
        self.slots -= free
        self._give_up = give_up - free

    def lose(self) -> None:
        """Note that the share is lost; what runs is counted again."""
        self._shares += 1
        self.slots = len(self.running)
        self._give_up = 0
        self._starts.clear()
        self._said = None

    def demand(self, now: float, free_workers: int) -> ToolDemand | None:
        """Return what this executor holds and needs, if that is news since the last time.

        Slots that it cannot use now are given up.
        """
        self._drop_lost_starts(now)
        held_back = len(self.waiting) + len(self.released) if self.is_counted else 0
        usable = 0 if self.is_paused else min(held_back, free_workers)
        running = len(self.running) if self.is_counted else 0
        self.slots = min(self.slots, running + usable)
        demand = ToolDemand(
            tool_name=self.name,
            limit=self.own_limit,
            keep=max(self.slots, running),
            want=running + usable,
            starts=0 if self.limit.rate is None else max(0, usable - len(self._starts)),
            has_more=held_back > usable,
            close_for=self._close_for,
            number=self._shares,
        )
        is_needed = demand.keep or demand.waits or demand.close_for or self._said is not None
        if not (is_needed or self._answered != self._shares) or demand == self._said:
            return None
        self._answered = self._shares
        self._said = demand if demand.keep or demand.waits or demand.close_for else None
        self._close_for = 0.0
        return demand

    @property
    def had_share(self) -> bool:
        """Whether it has got a share; the number of shares must then be remembered."""
        return self._shares > 0

    @property
    def is_idle(self) -> bool:
        """Whether the executor holds nothing and needs nothing."""
        return not (self.running or self.waiting or self.released or self.slots or self._said)

    def _drop_lost_starts(self, now: float) -> None:
        while self._starts and self._starts[0] < now:
            self._starts.popleft()
