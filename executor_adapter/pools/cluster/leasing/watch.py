"""Gives leases back to their engine: idle ones, and used ones between two attempts while others wait for their node."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from executor_adapter.job import CPU, UNITS, Shape
from executor_adapter.pools.base import Timer
from executor_adapter.pools.cluster.leasing.owner import LeasesOwner
from executor_adapter.pools.cluster.leasing.placement import SlotQueue
from executor_adapter.pools.cluster.leasing.shaped_lease import Starving
from executor_adapter.pools.cluster.leasing.shapes import ShapedLeases
from executor_adapter.pools.cluster.remote_agent import RemoteAgent

LOOK_INTERVAL = 0.5
"""Seconds between two looks at what the pool holds."""


class LeaseWatch:
    """Gives back what was idle for `lease_idle`, or for a moment while anything of the pool waits for a lease.

    A lease that the pool has had for `max_grant` seconds goes back as soon as its attempt ends while others wait for
    its node: tasks of others by the engine's books, or jobs of the pool whose shape has no lease at all. As many go
    back as are waited for, and no lease of their shape is asked for in the next `max_grant` seconds.
    """

    def __init__(
        self, pool: LeasesOwner, queue: SlotQueue, shapes: ShapedLeases, lease_idle: float, max_grant: float
    ) -> None:
        self._pool, self._queue, self._shapes = pool, queue, shapes
        self._supervisor = pool.supervisor
        self._idle_interval = lease_idle / 2
        self._max_grant = max_grant
        self._timer: Timer | None = None
        self._looked_at = self._supervisor.now()
        self._wanted: Counter[str] = Counter()
        """Slots that others waited for at the last look, by node."""
        self.rests: dict[Shape, float] = {}
        """The shapes that are not asked for, and until when: leases of theirs went back for others."""

    def begin(self) -> None:
        """Look from now on."""
        if self._timer is None:
            due = self._supervisor.now() + min(self._idle_interval, LOOK_INTERVAL)
            self._timer = self._supervisor.call_at(due, self._look)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._supervisor.now()
        is_awaited = bool(self._queue.waiting) or self._shapes.are_awaited
        if now >= self._looked_at + (min(self._idle_interval, 1.0) if is_awaited else self._idle_interval):
            self._looked_at = now
            self._release_idle()
        before, self.rests = self.rests, {shape: until for shape, until in self.rests.items() if until > now}
        if self.rests != before:
            self._ask_again()
        if any(self._is_due(since) for agent in self._pool.agents for since in _ages(agent)):
            self._pool.look_for_others()
        if not self.rests and not is_awaited:
            for agent in list(self._pool.agents):
                self._pool.close_unused(agent)
        if self.rests or self._pool.agents:
            self.begin()

    def _release_idle(self) -> None:
        """Give back what was not used since the last look."""
        for agent in list(self._pool.agents):
            for _ in range(min(agent.free, agent.slots - agent.fewest_plain)):
                self._pool.release(agent)
        self._shapes.release_idle()
        for agent in self._pool.agents:
            agent.fewest_plain = agent.plain

    # --- sharing ---

    def may_ask_for(self, shape: Shape) -> bool:
        """Return whether leases of a shape may be asked for: none has just gone back for the sake of others."""
        return shape not in self.rests

    def _is_due(self, since: float) -> bool:
        return self._supervisor.now() >= since + self._max_grant

    def on_others(self, waiting: Mapping[str, int]) -> None:
        """Let leases retire for others. `waiting`: how many slots they wait for, by the name of the node."""
        wanted = Counter(waiting)
        for shape, starving in self._starving().items():
            able = [each for each in self._pool.agents if starving.nodes is None or each.node in starving.nodes]
            able.sort(key=lambda agent: min(_ages(agent), default=math.inf))
            for agent in able[: starving.leases]:
                wanted[agent.node] += max(1, math.ceil(dict(shape).get(CPU, UNITS) / UNITS))
        # What waits for a moment only is about to get its place.
        lasting, self._wanted = wanted & self._wanted, wanted
        for agent in list(self._pool.agents):
            count = lasting[agent.node]
            agent.retiring = min(count, sum(map(self._is_due, agent.leases.values())))
            for lease in agent.shaped:
                lease.is_retiring = count > 0 and self._is_due(lease.since)
            self.release_retiring(agent)

    def _starving(self) -> dict[Shape, Starving]:
        waiting = len(self._queue.waiting)
        plain = {(): Starving(waiting, None)} if waiting and not self._pool.slots else {}
        starving = self._shapes.starving() | plain
        return {shape: each for shape, each in starving.items() if shape not in self.rests}

    def release_retiring(self, agent: RemoteAgent) -> None:
        """Give back what an agent is to give back and does not use."""
        self._shapes.release_retiring(agent)
        while agent.retiring and agent.plain < agent.slots:
            agent.retiring -= 1
            self.on_retired(())
            self._pool.release(agent)

    def on_retired(self, shape: Shape) -> None:
        """Take note that a lease is about to go back for the sake of others, who are to get its place."""
        if shape not in self.rests:
            self.rests[shape] = self._supervisor.now() + self._max_grant
            self._ask_again()

    def _ask_again(self) -> None:
        self._queue.ask_again()
        self._shapes.ask_again()


def _ages(agent: RemoteAgent) -> Iterable[float]:
    """Return since when the pool has each lease of an agent."""
    return (*agent.leases.values(), *(lease.since for lease in agent.shaped))
