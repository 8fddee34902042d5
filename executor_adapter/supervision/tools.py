"""Limits of tools: how many of their jobs run at once, and how many start in a second."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from executor_adapter.job import Job, ToolLimit
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.store import SharedTools, ToolAsk, ToolControl, ToolShare
from executor_adapter.supervision.line import Line

logger = logging.getLogger("executor_adapter")

WAIT_INTERVAL = 0.02
"""Seconds between two looks for a free slot, while jobs wait for one. A look takes 0.4 ms of CPU (SQLite) or 0.8 ms."""
CONTROLS_INTERVAL = 0.5
"""Seconds between two looks whether a tool was paused or limited, while jobs of any tool start or wait."""
KNOWN_SECONDS = 1.5
"""Seconds for which what was read of tools is taken to hold; then no job of any tool starts until it is read again."""
SILENCE_SECONDS = 10.0
"""Seconds without an answer of a shared store after which a warning says that jobs of tools wait for it."""
AHEAD_PAUSE = 2.0
"""Seconds for which no slot is asked for ahead after one was given up: most of the time others could use it."""
START_SECONDS = 1.0
"""Seconds after which a start that was shared out and not used goes back to the store."""

NO_LIMIT = ToolLimit()


class OwnStarts:
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


class SharedStarts(deque[float]):
    """The starts that a store has shared out to this executor, each as the time from which it may be used."""

    unused = 0
    """Starts that were not used in time, and that the store is to get back."""

    def next_at(self, now: float) -> float:
        """Return when the next start may be used; infinite where there is none."""
        while self and self[0] + START_SECONDS < now:
            self.popleft()
            self.unused += 1
        return self[0] if self else math.inf

    def take(self) -> None:
        """Use a start."""
        if self:
            self.popleft()


class ToolState:
    """What runs of one tool, the lines that are held back, and the slots and starts that it may use.

    Where the limit holds for this executor alone, the slots are those of the limit. Where it holds over all executors
    of a store, the executor starts jobs in the slots that it has got. It alone knows how many of them are in use, so it
    alone gives them up; the store learns of it by the next `ask`.
    """

    def __init__(self, name: str, limit: ToolLimit, now: float, *, is_shared: bool) -> None:
        self.name = name
        self._own_limit = limit
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
        self.lines: dict[Line, bool] = {}
        """The lines whose first job had a worker and did not start, and whether they are held back until one may."""
        self.close_for = 0.0
        """Seconds for which no executor may start another attempt; the store is to learn of it."""
        self.is_waiting = False
        """Whether the executor waits for more than it has got, as far as the store knows."""
        self.held = 0
        """Slots that the executor holds, as far as the store knows."""
        self._give_up = 0
        self._ahead_from = now
        """When a slot may be asked for ahead."""
        self._shared_starts = SharedStarts()
        self._starts: SharedStarts | OwnStarts = self._shared_starts if is_shared else OwnStarts(limit, now)
        if is_shared and self.is_counted:
            self.slots = 0

    @property
    def is_counted(self) -> bool:
        """Whether slots or starts are limited."""
        return self.limit.max_concurrent is not None or self.limit.rate is not None

    def held_back(self) -> int:
        """Return how many jobs are held back."""
        return sum(line.count for line, is_held in self.lines.items() if is_held)

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

    def started(self, job: Job, line: Line) -> None:
        """Count a start of the first job of a line."""
        self._starts.take()
        self.running.add(job)
        self.lines.pop(line, None)

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
        self.limit = control.limit or self._own_limit
        if not self.is_counted:
            self.slots = math.inf
        elif not was_counted:
            self.running.update(running_of(self.name))
            self.slots = len(self.running)

    def ask(self, now: float, free_workers: Callable[[str], int], is_next: Callable[[Line], bool]) -> ToolAsk:
        """Return what the executor holds and needs. Slots that it cannot use now are given up.

        The jobs of a tool start in order, so the first one decides, of those that are held back if there are any. If it
        comes before all others that wait for a worker, it gets a slot, or a start, ahead: others would have each worker
        that becomes free before the store has answered. Such a slot is kept, but no more wanted; a start is asked for
        again once it has gone back.
        """
        asked = ToolAsk(tool_name=self.name, limit=self._own_limit, close_for=self.close_for)
        if not self.is_counted:
            return asked
        running, held_back, usable, is_ahead, starts = len(self.running), self.held_back(), 0, False, 0
        first = min(self.lines, key=lambda line: (not self.lines[line], line.turn()), default=None)
        if first is not None and not self.is_paused:
            usable = min(held_back, free_workers(first.pool))
            is_ahead = not usable and now >= self._ahead_from and is_next(first)
        self.slots = keep = int(max(running, min(self.slots, running + usable + is_ahead)))
        if self.limit.rate is not None:
            self._shared_starts.next_at(now)
            missing = usable + is_ahead - len(self._shared_starts)
            starts = missing if missing > len(self._shared_starts) else 0  # Several at a time.
        want = running + usable + (is_ahead and keep == running)
        return replace(asked, keep=keep, want=want, starts=starts, unused=self._shared_starts.unused)

    def is_news(self, ask: ToolAsk) -> bool:
        """Return whether the store does not know this yet."""
        return ask.keep != self.held or ask.waits != self.is_waiting or ask.close_for > 0 or ask.unused > 0

    def receive(self, share: ToolShare, ask: ToolAsk, now: float) -> None:
        """Add what the executor has got, or note that slots are to be given up as soon as they are free."""
        self.held, self.is_waiting = share.use.held, share.use.waits_since is not None
        self._shared_starts.extend(now + seconds for seconds in share.starts)
        self._shared_starts.unused -= ask.unused
        if self.is_counted:
            since_asked = max(0, ask.keep - int(self.slots))  # Given up already.
            self.slots += share.granted
            give_up = max(0, share.give_up - since_asked)
            free = min(give_up, max(0, int(self.slots) - len(self.running)))
            self.slots -= free
            self._give_up = give_up - free
            self._ahead_from = now + AHEAD_PAUSE if free else self._ahead_from

    def lose(self, *, is_over: bool) -> None:
        """Note that what the executor held is lost, or may be by now; what runs is counted until it ends."""
        if is_over:
            self.held, self.is_waiting, self._shared_starts.unused = 0, False, 0
        self._shared_starts.clear()
        if self.is_counted:
            self.slots = self._give_up = len(self.running)

    @property
    def is_idle(self) -> bool:
        """Whether the executor holds nothing and needs nothing."""
        return not (self.running or self.lines or self.held or self.is_waiting or self.close_for)


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """Asks a store for shares of tools, and for what holds for all of them."""

    asks: Sequence[ToolAsk]
    is_news: bool
    """Whether the store does not know yet what they say; otherwise probably nothing has to be written."""
    losses: int
    """How many losses of the lease the rate limiter knows of. If there were more, it is about to ask anew."""


class RateLimiter:
    """Holds back the lines of jobs whose tool is at its limit. Supervisor thread only.

    Once a job of the tool may start, `release` puts its lines back, each at the turn of its first job.

    After `share`, the limits hold over all executors of a store, and a tool of any name may be paused there. The store
    is asked one thing at a time: all that the executor holds and needs. It is asked when that changes, every
    WAIT_INTERVAL while jobs wait for a slot or a start, and every CONTROLS_INTERVAL while tools are used. Tools of
    which nothing is set cost nothing but a look at the time until which that is known.

    **When the store is down** what the executor holds stays its own until its lease ends, and it starts jobs within
    that; further ones wait. Tools without a limit go on. When its lease is lost, another host may have taken over what
    it held: then nothing more starts until the store has answered again.
    """

    def __init__(
        self,
        limits: Mapping[str, ToolLimit],
        loop: SupervisorLoop,
        *,
        release: Callable[[Line], None],
        running_of: Callable[[str], Iterable[Job]],
    ) -> None:
        self.is_used = bool(limits)
        """Whether anything can hold a job back."""
        self._now, self._call_at = loop.now, loop.call_at
        self._release = release
        self._running_of = running_of
        self._own_limits = dict(limits)
        self._ask_store: Callable[[ToolRequest], None] | None = None
        self._known_until = math.inf
        """Until when it is known what was set for tools."""
        self._tools = {name: self._new_state(name) for name in limits}
        self._active: dict[str, ToolState] = {}
        """The tools of which this executor holds something, or needs something."""
        self._request: ToolRequest | None = None
        """What the store was asked and has not answered yet."""
        self._asked_at = -math.inf
        self._losses = 0
        self._look_at = math.inf
        """When the store is asked again at the latest."""
        self._timer_at = math.inf
        self._is_watching = False

    def share(self, ask_store: Callable[[ToolRequest], None]) -> None:
        """Let the limits hold over all executors of a store. Called once, before the first job.

        `ask_store` returns at once; `on_answer` or `on_lease_lost` is called later, on the supervisor's thread.
        """
        self._ask_store, self.is_used = ask_store, True
        self._known_until = -math.inf
        self._tools = {name: self._new_state(name) for name in self._own_limits}

    def _new_state(self, name: str) -> ToolState:
        limit = self._own_limits.get(name, NO_LIMIT)
        return ToolState(name, limit, self._now(), is_shared=self._ask_store is not None)

    def limits(self, job: Job) -> bool:
        """Return whether the job's tool has a limit, or lets nothing start now."""
        if (tool := self._state_for(job)) is None:
            return False
        return tool.is_counted or self._opens_at(tool, now := self._now()) > now

    def start(self, job: Job, line: Line) -> bool:
        """Return whether the job may start; it then counts until `attempt_ended`. Otherwise its line is held back."""
        tool = self._state_for(job)
        if tool is None:
            return True
        self._active[tool.name] = tool
        if not tool.is_full() and self._opens_at(tool, now := self._now()) <= now:
            tool.started(job, line)
            return True
        tool.lines[line] = True
        self._release_held(tool)
        return False

    def _state_for(self, job: Job) -> ToolState | None:
        """Return the state of the job's tool; None where the job may start without one."""
        name = job.tool_name
        if name is None:
            return None
        tool = self._tools.get(name)
        if self._ask_store is not None:
            now = self._now()
            is_known = self._known_until >= now
            self._look_at = min(self._look_at, now + CONTROLS_INTERVAL if is_known else now)
            if tool is None and not is_known:
                tool = self._tools[name] = self._new_state(name)
        return tool

    def attempt_ended(self, job: Job) -> None:
        """Note that an attempt that `start` allowed has ended, or did not begin."""
        if (tool := self._tools.get(job.tool_name or "")) is not None:
            tool.ended(job)
            self._release_held(tool)

    def pause(self, job: Job, seconds: float) -> None:
        """Start no job of this job's tool for so long: the remote side asked for it."""
        if (name := job.tool_name) is not None:
            tool = self._tools[name] = self._active[name] = self._tools.get(name) or self._new_state(name)
            tool.close(self._now(), seconds)
            self.is_used = True

    # --- shared limits ---

    def report(self, free_workers: Callable[[str], int], is_next: Callable[[Line], bool]) -> None:
        """Ask for what is needed of shared limits, and give back what is not; called at the end of each turn.

        Args:
            free_workers: returns how many attempts might start now in a pool.
            is_next: returns whether the first job of a line comes before all others that wait for a worker.
        """
        if self._ask_store is None or self._request is not None:
            return
        now, is_news, asks = self._now(), False, []
        for tool in self._active.values():
            ask = tool.ask(now, free_workers, is_next)
            is_news |= tool.is_news(ask)
            if tool.is_waiting or (tool.held and tool.lines):  # Others may change what it gets, or has to give up.
                self._look_at = min(self._look_at, now + WAIT_INTERVAL)
            if ask.keep or ask.waits or tool.is_news(ask):
                asks.append(ask)
        if is_news or now >= self._look_at:
            for ask in asks:
                self._tools[ask.tool_name].close_for = 0.0
            self._request, self._asked_at, self._look_at = ToolRequest(asks, is_news, self._losses), now, math.inf
            self._ask_store(self._request)
            self._watch_silence()
        elif self._look_at < self._timer_at:
            self._timer_at = self._look_at
            self._call_at(self._look_at, self._on_look)

    def _on_look(self) -> None:
        """Let the turn that begins now end with another look at the store."""
        self._timer_at = math.inf

    def on_answer(self, shares: Mapping[str, ToolShare], tools: SharedTools, at: float) -> None:
        """Receive what the store said at the time `at` of this executor's clock, and the shares of what was asked."""
        asks = () if self._request is None else self._request.asks
        self._request, self._known_until = None, at + KNOWN_SECONDS
        self._apply_controls(tools)
        for ask in asks:
            self._tools[ask.tool_name].receive(shares[ask.tool_name], ask, self._now())
        for tool in list(self._tools.values()):
            self._release_held(tool)
            if tool.is_idle:
                self._forget(tool, tools)
        if any(tool.lines for tool in self._active.values()):
            self._look_at = min(self._look_at, self._now() + CONTROLS_INTERVAL)

    def _apply_controls(self, tools: SharedTools) -> None:
        now = self._now()
        for name, control in tools.controls.items():
            if name not in self._tools and (control.closed_until > tools.now or not control.is_empty):
                self._tools[name] = self._new_state(name)
        for name, tool in self._tools.items():
            control = tools.control(name)
            tool.apply(control, self._running_of)
            if control.closed_until > tools.now:
                tool.closed_until = max(tool.closed_until, now + control.closed_until - tools.now)
            if tool.running or tool.lines:
                self._active[name] = tool

    def _forget(self, tool: ToolState, tools: SharedTools) -> None:
        """Drop the state of a tool that this executor uses no more, unless something is set for it."""
        self._active.pop(tool.name, None)
        is_over = tool.closed_until <= self._now()
        if is_over and tool.name not in self._own_limits and tools.control(tool.name).is_empty:
            del self._tools[tool.name]

    def on_outage(self) -> None:
        """Note that the store is down: tools without a limit go on, and a pause that was seen goes on to hold."""
        self._known_until = math.inf
        for tool in list(self._tools.values()):
            self._release_held(tool)

    def on_lease_lost(self, *, is_over: bool = True) -> None:
        """Note that this executor's shares are lost, or may be by now: nothing starts until the store has answered."""
        if is_over:
            self._losses += 1
            self._request, self._look_at = None, self._now()
        for tool in self._tools.values():
            tool.lose(is_over=is_over)

    @property
    def is_active(self) -> bool:
        """Whether jobs of limited tools run or wait."""
        return bool(self._active)

    def held_back(self) -> int:
        """Return how many jobs are held back."""
        return sum(tool.held_back() for tool in self._tools.values())

    def _watch_silence(self) -> None:
        """Warn if the store does not answer: one that hangs raises nothing, and jobs wait for it."""
        if not self._is_watching:
            self._is_watching = True
            asked_at = self._asked_at
            self._call_at(self._now() + SILENCE_SECONDS, lambda: self._check_silence(asked_at))

    def _check_silence(self, since: float) -> None:
        self._is_watching = False
        if self._request is None:
            return
        if self._asked_at == since and (waiting := self.held_back()):
            logger.warning(
                "the store has not answered for %.0f s: %d jobs with a tool_name wait for it, of tools that are "
                "limited, or of which it is not known whether they are paused",
                self._now() - since,
                waiting,
            )
        self._watch_silence()

    # --- inside ---

    def _opens_at(self, tool: ToolState, now: float) -> float:
        return tool.opens_at(now) if self._known_until >= now else math.inf

    def _release_held(self, tool: ToolState) -> None:
        """Release what is held back, if its next job may start; else look again when the rate allows it."""
        tool.lines = {line: is_held for line, is_held in tool.lines.items() if line.count}
        if not (held := [line for line, is_held in tool.lines.items() if is_held]):
            return
        now = self._now()
        opens_at = math.inf if tool.is_full() else self._opens_at(tool, now)
        for line in held:
            # A job that has ended is dropped in the queue. Here it would be counted among those that wait.
            if opens_at <= now or not line.first.live.wants_slot:
                tool.lines[line] = False
                self._release(line)
        if now < opens_at < math.inf and not tool.timer_set:
            tool.timer_set = True
            self._call_at(opens_at, lambda: self._on_timer(tool))

    def _on_timer(self, tool: ToolState) -> None:
        tool.timer_set = False
        self._release_held(tool)
