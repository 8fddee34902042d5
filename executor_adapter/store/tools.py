"""Limits of tools that hold over all executors of one store: how slots and starts are shared out.

A *slot* lets one attempt of a tool run; an executor's share is the number of slots that it holds. A *start* lets one
attempt begin, where the tool has a rate. An executor takes slots in a transaction that sees what all others hold, so
that the limit holds whatever happens to the executors. What it holds ends with its host's row: when that host is seen
to be dead, or its lease has expired.

`share_out` decides, and nothing else does: it is called once to see whether there is anything to write, and again
within the transaction that writes it.

**Starts are shared out ahead**: those of the next AHEAD_SECONDS, each with the moment from which it may be used. So the
rate is used up, however often executors ask.

**Order.** The executor that has waited longest comes first. An executor keeps its slots for its next jobs, unless one
that holds fewer waits: then it gives one up when an attempt ends, but not within FAIR_SECONDS. One for which it has no
worker yet goes to any that waits.

Only `closed_until` may lie ahead: see `_age` for a clock that is set back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from executor_adapter.job import ToolLimit

FRESH_SECONDS = 1.0
"""Seconds after which an executor that waits, and has not asked again, is overtaken."""
ASK_AGAIN_SECONDS = FRESH_SECONDS / 4
"""Seconds after which an executor that waits must show that it still does."""
FAIR_SECONDS = 0.3
"""Seconds for which an executor may keep what it holds while others wait."""
AHEAD_SECONDS = 0.1
"""Seconds for which starts are shared out ahead: executors that wait ask more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolControl:
    """What holds for one tool in all executors. Times are seconds since the epoch, by the store's clock."""

    tool_name: str
    limit: ToolLimit | None = None
    """Wins over the executors' own limits; None: each executor applies its own."""
    limited_by: str | None = None
    """Who set it."""
    paused_by: str | None = None
    """Who has paused the tool; None: it is not paused."""
    paused_at: float | None = None
    closed_until: float = 0.0
    """No start before this: the remote side asked for it (RATE_LIMITED)."""
    starts: float | None = None
    """What the bucket of starts held at `filled_at`; None: it is full."""
    filled_at: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was set: the executors' own limits hold."""
        return self.limit is None and self.paused_by is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What one executor holds of one tool. Times are seconds since the epoch, by the store's clock."""

    tool_name: str
    host_id: str
    held: int = 0
    """Slots that it holds."""
    held_since: float = 0.0
    """When that number last changed."""
    waits_since: float | None = None
    """Since when it waits for another slot or start; None: it does not."""
    asked_at: float = 0.0
    """When it last asked."""
    max_concurrent: int | None = None
    """Its own limit."""
    rate: float | None = None
    """Its own rate, in starts a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAsk:
    """What an executor holds and needs of one tool. `keep` slots are its own already, unless its lease was lost."""

    tool_name: str
    limit: ToolLimit
    """The executor's own limit."""
    keep: int = 0
    """Slots that it goes on to hold; it gives back all others."""
    want: int = 0
    """Slots that it needs, those that it keeps included. What it keeps beyond them goes to any that waits."""
    starts: int = 0
    """Starts that it can use beyond those that it has, where the tool has a rate."""
    unused: int = 0
    """Starts that it gives back, because it could not use them in time."""
    close_for: float = 0.0
    """Seconds for which no executor may start another attempt."""

    @property
    def waits(self) -> bool:
        """Whether the executor needs more than it holds."""
        return self.want > self.keep or self.starts > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolShare:
    """What an executor gets of one tool, and what is written for it."""

    use: ToolUse
    """What it holds from now on, and whether it waits."""
    control: ToolControl
    """What holds for the tool from now on."""
    granted: int = 0
    """Slots that it gets beyond those that it keeps."""
    starts: tuple[float, ...] = ()
    """Starts that it gets, each as the seconds from now after which it may be used once."""
    give_up: int = 0
    """Slots that it must give up as soon as attempts end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedTools:
    """What a store says of all tools at one moment."""

    now: float
    """The time by the store's clock, in seconds since the epoch."""
    controls: Mapping[str, ToolControl]
    """What holds for tools, by name."""
    uses: Sequence[ToolUse]
    """What hosts with a lease hold and wait for."""
    any_gone: bool = False
    """Whether a host that holds slots is gone: they are free once its lease has been ended."""

    def share(self, ask: ToolAsk, host_id: str) -> ToolShare:
        """Return what the host gets of what it asks for."""
        others = [use for use in self.uses if use.tool_name == ask.tool_name and use.host_id != host_id]
        mine = self.use(ask.tool_name, host_id)
        return share_out(ask, self.control(ask.tool_name), mine, others, now=self.now)

    def is_changed_by(self, ask: ToolAsk, host_id: str) -> bool:
        """Return whether anything has to be written for what the host asks for."""
        share = self.share(ask, host_id)
        return is_news(share, self.use(ask.tool_name, host_id), self.control(ask.tool_name))

    def use(self, tool_name: str, host_id: str) -> ToolUse:
        """Return what the host holds of the tool."""
        none = ToolUse(tool_name=tool_name, host_id=host_id)
        return next((use for use in self.uses if (use.tool_name, use.host_id) == (tool_name, host_id)), none)

    def control(self, tool_name: str) -> ToolControl:
        """Return what holds for the tool."""
        return self.controls.get(tool_name) or ToolControl(tool_name=tool_name)


def share_out(ask: ToolAsk, control: ToolControl, mine: ToolUse, others: Sequence[ToolUse], *, now: float) -> ToolShare:
    """Return what a host gets of what it asks for.

    Args:
        ask: what it asks for.
        control: what holds for the tool.
        mine: what it holds by now, as stored.
        others: what the other living hosts hold and wait for.
        now: the time by the store's clock.
    """
    if ask.close_for:
        control = replace(control, closed_until=max(control.closed_until, now + ask.close_for))
    limit = control.limit or ask.limit
    waiting = [other for other in others if other.waits_since is not None and _age(other.asked_at, now) < FRESH_SECONDS]
    since = now if mine.waits_since is None else min(now, mine.waits_since)
    total = ask.keep + sum(other.held for other in others)
    able = [other for other in waiting if _has_room(other, control, total)]
    ahead = sum((other.waits_since, other.host_id) < (since, mine.host_id) for other in able)
    is_open = control.paused_by is None and control.closed_until <= now
    granted = max(0, ask.want - ask.keep) if is_open else 0
    if limit.max_concurrent is not None:
        # One at a time where others wait, so that none gets all that is free.
        granted = min(granted, max(0, limit.max_concurrent - total - ahead), 1 if waiting else granted)
    starts: tuple[float, ...] = ()
    if limit.rate is not None:
        control, starts = _start_times(control, limit, ask if is_open else replace(ask, starts=0), ahead, now)
    held = ask.keep + granted
    is_served = held >= ask.want and (limit.rate is None or len(starts) >= ask.starts)
    use = ToolUse(
        tool_name=ask.tool_name,
        host_id=mine.host_id,
        held=held,
        held_since=mine.held_since if held == mine.held else now,
        waits_since=None if is_served or not ask.waits else now if granted or starts else since,
        asked_at=now,
        max_concurrent=ask.limit.max_concurrent,
        rate=ask.limit.rate,
    )
    give_up = _to_give_up(ask, use, others, waiting if is_open else (), limit)
    return ToolShare(use=use, control=control, granted=granted, starts=starts, give_up=give_up)


def is_news(share: ToolShare, mine: ToolUse, control: ToolControl) -> bool:
    """Return whether a share has to be written."""
    use = share.use
    if share.starts or share.control.closed_until != control.closed_until:
        return True
    if (use.held, use.waits_since is None) != (mine.held, mine.waits_since is None):
        return True
    return use.waits_since is not None and _age(mine.asked_at, use.asked_at) >= ASK_AGAIN_SECONDS


def _start_times(
    control: ToolControl, limit: ToolLimit, ask: ToolAsk, ahead: int, now: float
) -> tuple[ToolControl, tuple[float, ...]]:
    """Return the control after starts were given back and taken, as far as there are any, and when each taken one is.

    `ahead`: the number of hosts that come first, and get one each. The bucket may be taken below 0: by what flows into
    it within AHEAD_SECONDS.
    """
    assert limit.rate is not None
    rate = limit.rate * (1 - (limit.buffer or 0.0))
    held = float(limit.burst)
    if control.starts is not None:
        held = min(held, control.starts + _age(control.filled_at, now) * rate + ask.unused)
    # Slightly less than one counts as one: the clock is a float.
    got = min(ask.starts, max(0, int(held + rate * AHEAD_SECONDS + 1e-9) - ahead))
    times = tuple(max(0.0, number - held) / rate for number in range(1, got + 1))
    return replace(control, starts=held - got, filled_at=now), times


def _age(since: float, now: float) -> float:
    """Return the seconds since a moment of the past.

    One that lies ahead, since the clock was set back, counts as so long ago: nobody waits until the clock has passed it
    once more. One a little ahead is what another host wrote while this one waited for the row of the tool: no time.
    """
    return since - now if since - now > FRESH_SECONDS else max(0.0, now - since)


def _has_room(other: ToolUse, control: ToolControl, total: int) -> bool:
    """Return whether another host that waits could take a slot: its own limit may be smaller than this host's."""
    most = other.max_concurrent if control.limit is None else control.limit.max_concurrent
    return most is None or total < most


def _to_give_up(
    ask: ToolAsk, use: ToolUse, others: Sequence[ToolUse], waiting: Sequence[ToolUse], limit: ToolLimit
) -> int:
    """Return how many slots the host must give up: those beyond the limit, or one for a host that waits."""
    if limit.max_concurrent is None:
        return 0
    free = limit.max_concurrent - use.held - sum(other.held for other in others)
    if free < 0:
        return min(use.held, -free)
    # Only for hosts that hold fewer: among hosts that hold the same number, slots need not change hands. One that keeps
    # more than it needs counts as if it held them all.
    held = use.held if ask.keep <= ask.want else limit.max_concurrent
    fewest = min((other.held for other in waiting), default=0)
    missing = sum(other.held < held for other in waiting) - free
    if missing <= 0 or _age(use.held_since, use.asked_at) < FAIR_SECONDS:
        return 0
    # Those who hold the most give one up, and of these the ones who have had theirs longest.
    mine = (-held, use.held_since, use.host_id)
    before = sum(other.held > fewest and (-other.held, other.held_since, other.host_id) < mine for other in others)
    return 1 if before < missing else 0
