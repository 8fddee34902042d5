"""Holds back jobs whose tool is at its limit, and releases them in order."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping

from executor_adapter.job import TERMINAL, Job, ToolLimit
from executor_adapter.store import ToolControl
from executor_adapter.supervision.tools.demand import SharedLimits
from executor_adapter.supervision.tools.tool_state import NO_LIMIT, SharedToolState, ToolState, Turn

logger = logging.getLogger("executor_adapter")

SILENCE_SECONDS = 10.0
"""Seconds without an answer of a shared store after which a warning says that jobs of tools wait for it."""


class RateLimiter:
    """Holds back jobs whose tool is at its limit, and releases them in order. Supervisor thread only.

    The order is the highest priority first, then the job that was queued first. `release` puts a job back before all
    others of its priority. So the next job is released only when the last one has been tried or skipped, unless it is
    to start before that one: otherwise they would overtake one another.

    After `share`, the limits hold over all executors of a store, and a tool of any name may be paused there. Tools of
    which nothing is set cost nothing but a look at the time until which that is known.
    """

    def __init__(
        self,
        limits: Mapping[str, ToolLimit],
        *,
        now: Callable[[], float],
        call_at: Callable[[float, Callable[[], None]], object],
        release: Callable[[Job], None],
        running_of: Callable[[str], Iterable[Job]] = lambda _: (),
    ) -> None:
        self.is_used = bool(limits)
        """Whether anything can hold a job back."""
        self.shared: SharedLimits | None = None
        """Gets this executor's shares of limits that hold for other executors too."""
        self.used_at = -math.inf
        """When a job of any tool was last tried, where limits are shared."""
        self._now = now
        self._call_at = call_at
        self._release = release
        self._running_of = running_of
        self._numbers = itertools.count()
        self._own_limits = dict(limits)
        self._tools: dict[str, ToolState] = {name: ToolState(name, limit, now()) for name, limit in limits.items()}
        self._controls: Mapping[str, ToolControl] = {}
        self._known_until = -math.inf
        self._silent_since: float | None = None
        """When the store was asked first what holds for tools, while that is watched."""
        self._active: dict[str, SharedToolState] = {}
        """The tools of which this executor holds something, or needs something."""

    def share(self, limits: SharedLimits) -> None:
        """Let the limits hold over all executors of a store. Called once, before the first job."""
        self.shared, self.is_used = limits, True
        self._tools = {name: self._shared_state(name) for name in self._own_limits}

    def limits(self, job: Job) -> bool:
        """Return whether the job's tool has a limit, or lets nothing start now."""
        name = job.tool_name
        if name is None:
            return False
        tool = self._tools.get(name)
        if self.shared is None:
            return tool is not None
        self.used_at = now = self._now()
        return self._known_until < now or (tool is not None and (tool.is_limited or tool.opens_at(now) > now))

    def start(self, job: Job) -> bool:
        """Return whether the job may start; it then counts as running until `end`. Otherwise it is held back."""
        tool = self._state_for(job)
        if tool is None:
            return True
        turn = tool.released.pop(job, None) or (-job.priority, job.live.queued_at, next(self._numbers), job)
        may_start = not tool.is_full() and tool.opens_at(now := self._now()) <= now and _is_first(turn, tool)
        if may_start:
            tool.started(job)
        else:
            heapq.heappush(tool.waiting, turn)
            if self.shared is not None and tool.is_paused:
                self.shared.refresh()  # From now on it has to look whether the tool is resumed.
        self._release_next(tool)
        return may_start

    def _state_for(self, job: Job) -> ToolState | None:
        """Return the state of the job's tool; None where the job may start without one."""
        name = job.tool_name
        if name is None:
            return None
        tool = self._tools.get(name)
        if self.shared is None:
            return tool
        self.used_at = now = self._now()
        is_known = self._known_until >= now
        if not is_known:
            self.shared.refresh()
            self._watch_silence()
        if tool is None:
            if is_known:
                return None
            tool = self._tools[name] = self._shared_state(name)
        if isinstance(tool, SharedToolState):
            self._active[name] = tool
        return tool

    def end(self, job: Job) -> None:
        """Note that an attempt that `start` allowed has ended, or did not begin."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.ended(job)
            self._release_next(tool)

    def skip(self, job: Job) -> None:
        """Note that a job, which may have been released, needs no `start` any more: it ended, or went without."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None and tool.released.pop(job, None) is not None:
            self._release_next(tool)

    def pause(self, job: Job, seconds: float) -> None:
        """Start no job of this job's tool for so long: the remote side asked for it."""
        tool = self._tools.get(job.tool_name or "")
        if tool is not None:
            tool.close(self._now(), seconds)

    # --- shared limits ---

    def report(self, free_workers: Callable[[str], int]) -> None:
        """Ask for what is needed of shared limits, and give back what is not; called at the end of each turn.

        `free_workers`: returns how many attempts might start now in a pool. The jobs of a tool start in order, so it is
        asked for the pool of the first one.
        """
        if self.shared is None or not self._active:
            return
        now = self._now()
        for name, tool in list(self._active.items()):
            first = tool.first()
            demand = tool.demand(now, 0 if first is None else free_workers(first.live.pool))
            if demand is not None:
                self.shared.ask(demand)
            if tool.is_idle:
                del self._active[name]
                if name not in self._own_limits and not tool.is_limited and not tool.had_share:
                    del self._tools[name]

    def on_share(self, tool_name: str, *, slots: int, starts: int, give_up: int) -> None:
        """Add to the share of a tool; see `SharedToolState.receive`."""
        tool = self._tools.get(tool_name) or self._shared_state(tool_name)
        assert isinstance(tool, SharedToolState)
        self._tools[tool_name] = self._active[tool_name] = tool
        tool.receive(self._now(), slots=slots, starts=starts, give_up=give_up)
        self._release_next(tool)

    def on_controls(self, controls: Mapping[str, ToolControl], at: float, known_for: float) -> None:
        """Note what was set for tools in the store at the time `at` of its clock, and holds for so many seconds."""
        now = self._now()
        self._controls, self._known_until = controls, now + known_for
        for name in controls.keys() - self._tools.keys():
            if not controls[name].is_empty:
                self._tools[name] = self._shared_state(name)
        for name, tool in list(self._tools.items()):
            assert isinstance(tool, SharedToolState)
            self._apply_control(tool)
            if name in controls and controls[name].closed_until > at:
                tool.closed_until = max(tool.closed_until, now + controls[name].closed_until - at)
            self._release_next(tool)

    def on_lease_lost(self) -> None:
        """Note that this executor's shares are lost."""
        for tool in self._tools.values():
            assert isinstance(tool, SharedToolState)
            tool.lose()

    def held_back(self) -> int:
        """Return how many jobs are held back. Any thread may call it."""
        return sum(len(tool.waiting) for tool in list(self._tools.values()))

    def _shared_state(self, name: str) -> SharedToolState:
        tool = SharedToolState(name, self._own_limits.get(name, NO_LIMIT), self._now())
        self._apply_control(tool)
        return tool

    def _apply_control(self, tool: SharedToolState) -> None:
        control = self._controls.get(tool.name)
        was_counted = tool.is_counted
        tool.is_paused = control is not None and control.paused_by is not None
        tool.limit = tool.own_limit if control is None or control.limit is None else control.limit
        tool.known_until = self._known_until
        if tool.is_counted and not was_counted:
            tool.running.update(self._running_of(tool.name))
            tool.slots = 0
        if tool.running or tool.waiting:
            self._active[tool.name] = tool

    # --- inside ---

    def _watch_silence(self) -> None:
        """Warn if what holds for tools stays unknown: a store that hangs raises nothing, and their jobs wait for it."""
        if self._silent_since is None:
            self._silent_since = self._now()
            self._call_at(self._silent_since + SILENCE_SECONDS, self._warn_of_silence)

    def _warn_of_silence(self) -> None:
        now, waiting, since = self._now(), self.held_back(), self._silent_since
        if since is None or not waiting or self._known_until >= since:
            self._silent_since = None
            return
        logger.warning(
            "the store has not answered for %.0f s: %d jobs with a tool_name wait until it says which tools are paused "
            "or limited",
            now - since,
            waiting,
        )
        self._call_at(now + SILENCE_SECONDS, self._warn_of_silence)

    def _release_next(self, tool: ToolState) -> None:
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
        elif opens_at == math.inf:
            if self.shared is not None and self._known_until < now:
                self.shared.refresh()  # What was known has become too old while the job was held back.
        elif not tool.timer_set:
            tool.timer_set = True
            self._call_at(opens_at, lambda: self._on_timer(tool))

    def _on_timer(self, tool: ToolState) -> None:
        tool.timer_set = False
        self._release_next(tool)


def _is_first(turn: Turn, tool: ToolState) -> bool:
    """Return whether no job that is held back or released comes before this one."""
    return all(turn < other for other in (*tool.waiting[:1], *tool.released.values()))


def needs_no_slot(job: Job) -> bool:
    """Return whether a queued job needs no slot any more: it has ended, or its driver wants none."""
    live = job.live
    return job.state.status in TERMINAL or (live.driver is not None and not live.driver.wants_slot)
