"""The state of one tool in an executor: what runs, what is held back, and what it may start."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable

from executor_adapter.job import Job, ToolLimit
from executor_adapter.store import ToolAsk, ToolControl, ToolShare

START_SECONDS = 1.0
"""Seconds after which a start that was shared out and not used is lost."""

Turn = tuple[int, float, int, Job]
"""A job that was held back, and what it is sorted by: priority (highest first), when it was queued, and a number."""


class Bucket:
    """The starts of a rate that holds for this executor alone: a bucket of `burst` starts, refilled at the rate."""

    def __init__(self, limit: ToolLimit, now: float) -> None:
        self._rate = math.inf if limit.rate is None else limit.rate * (1 - (limit.buffer or 0.0))
        self._size = self._held = float(limit.burst)
        self._filled_at = now

    def next_at(self, now: float) -> float:
        """Return when the next start may be used."""
        self._held = min(self._size, self._held + (now - self._filled_at) * self._rate)
        self._filled_at = now
        # Slightly less than one counts as one: the clock is a float.
        return now if self._held > 1 - 1e-9 else now + (1 - self._held) / self._rate

    def take(self) -> None:
        """Use a start."""
        self._held -= 1


class Grants:
    """The starts that a store has shared out to this executor."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        """From when on each may be used."""

    def __len__(self) -> int:
        return len(self._times)

    def add(self, times: Iterable[float]) -> None:
        """Add starts, each with the time from which it may be used."""
        self._times.extend(times)

    def next_at(self, now: float) -> float:
        """Return when the next start may be used; infinite where there is none."""
        while self._times and self._times[0] + START_SECONDS < now:
            self._times.popleft()
        return self._times[0] if self._times else math.inf

    def take(self) -> None:
        """Use a start."""
        if self._times:
            self._times.popleft()

    def clear(self) -> None:
        """Lose all."""
        self._times.clear()


class ToolState:
    """What runs of one tool, what is held back, and the slots and starts that it may use.

    Where the limit holds for this executor alone, the slots are those of the limit. Where it holds over all executors
    of a store, the executor starts jobs in the slots that it has got. It alone knows how many of them are in use, so it
    alone gives them up; the store learns of it by the next `ask`.
    """

    def __init__(self, name: str, limit: ToolLimit, now: float, *, is_shared: bool) -> None:
        self.name = name
        self.own_limit = limit
        self.limit = limit
        """The limit that holds now: this executor's own, or the one that was set in the store."""
        self.closed_until = now
        """No job starts before this: the remote side asked for it."""
        self.is_paused = False
        """Whether somebody has paused the tool in the store."""
        self.slots: float = math.inf if limit.max_concurrent is None else limit.max_concurrent
        """Attempts that may run at once."""
        self.running: set[Job] = set()
        self.timer_set = False
        self.waiting: list[Turn] = []
        """A heap."""
        self.released: dict[Job, Turn] = {}
        """Jobs that may be tried again, and have not been yet. More than one only where each comes before the last."""
        self.close_for = 0.0
        """Seconds for which no executor may start another attempt; the store is to learn of it."""
        self.is_waiting = False
        """Whether the executor waits for more than it has got, as far as the store knows."""
        self._has_more = False
        self._held = 0
        """Slots that the executor holds, as far as the store knows."""
        self._give_up = 0
        self._grants = Grants()
        self._starts: Grants | Bucket = self._grants if is_shared else Bucket(limit, now)
        if is_shared and self.is_counted:
            self.slots = 0

    @property
    def is_counted(self) -> bool:
        """Whether slots or starts are limited."""
        return self.limit.max_concurrent is not None or self.limit.rate is not None

    def first(self) -> Job | None:
        """Return the job that starts next of those that are held back or released."""
        turn = min((*self.waiting[:1], *self.released.values()), default=None)
        return None if turn is None else turn[-1]

    def opens_at(self, now: float) -> float:
        """Return when the next job may start: `now` or earlier, or later; infinite where that is not known."""
        if self.is_paused:
            return math.inf
        if self.closed_until > now:
            return self.closed_until
        return now if self.limit.rate is None else self._starts.next_at(now)

    def is_full(self) -> bool:
        """Return whether as many run as may."""
        return len(self.running) >= self.slots

    def started(self, job: Job) -> None:
        """Count a start."""
        self._starts.take()
        self.running.add(job)

    def ended(self, job: Job) -> None:
        """Note that an attempt has ended, or did not begin."""
        self.running.discard(job)
        if self._give_up and self.slots > len(self.running):
            self._give_up -= 1
            self.slots -= 1

    def close(self, now: float, seconds: float) -> None:
        """Start nothing for so long."""
        self.closed_until = max(self.closed_until, now + seconds)
        self.close_for = max(self.close_for, seconds)

    # --- a limit that holds over all executors of a store ---

    def apply(self, control: ToolControl, running_of: Callable[[str], Iterable[Job]]) -> None:
        """Apply what was set in the store. Once a tool is limited, the attempts count that run already."""
        was_counted = self.is_counted
        self.is_paused = control.paused_by is not None
        self.limit = control.limit or self.own_limit
        if not self.is_counted:
            self.slots = math.inf
        elif not was_counted:
            self.running.update(running_of(self.name))
            self.slots = len(self.running)

    def ask(self, now: float, free_workers: int) -> ToolAsk:
        """Return what the executor holds and needs. Slots that it cannot use now are given up."""
        held_back = len(self.waiting) + len(self.released)
        keep = want = starts = usable = 0
        if self.is_counted:
            running = len(self.running)
            usable = 0 if self.is_paused else min(held_back, free_workers)
            self.slots = keep = int(max(running, min(self.slots, running + usable)))
            want = running + usable
            if self.limit.rate is not None:
                self._grants.next_at(now)
                missing = usable - len(self._grants)
                starts = missing if missing > len(self._grants) else 0  # Several at a time.
        self._has_more = keep > 0 and held_back > usable
        return ToolAsk(
            tool_name=self.name, limit=self.own_limit, keep=keep, want=want, starts=starts, close_for=self.close_for
        )

    def is_news(self, ask: ToolAsk) -> bool:
        """Return whether the store does not know this yet."""
        return ask.keep != self._held or ask.waits != self.is_waiting or ask.close_for > 0

    @property
    def polls(self) -> bool:
        """Whether what others do may change what the executor gets, or has to give up."""
        return self.is_waiting or self._has_more

    def receive(self, share: ToolShare, ask: ToolAsk, now: float) -> None:
        """Add what the executor has got, or note that slots are to be given up as soon as they are free."""
        self._held, self.is_waiting = share.use.held, share.use.waits_since is not None
        self._grants.add(now + seconds for seconds in share.starts)
        if self.is_counted:
            since_asked = max(0, ask.keep - int(self.slots))  # Given up already.
            self.slots += share.granted
            give_up = max(0, share.give_up - since_asked)
            free = min(give_up, max(0, int(self.slots) - len(self.running)))
            self.slots -= free
            self._give_up = give_up - free

    def lose(self) -> None:
        """Note that what the executor held is lost; what runs is counted again."""
        self._held, self.is_waiting, self._give_up = 0, False, 0
        self._grants.clear()
        if self.is_counted:
            self.slots = len(self.running)

    @property
    def is_idle(self) -> bool:
        """Whether the executor holds nothing and needs nothing."""
        return not (self.running or self.waiting or self.released or self._held or self.is_waiting or self.close_for)
