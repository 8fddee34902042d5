"""Takes leases from where they are idle, or where jobs of one shape would keep them from those of another for ever."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from executor_adapter.job import CPU, UNITS, Shape, shape_text
from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.cluster.leasing.placement import SlotQueue
from executor_adapter.pools.cluster.leasing.shaped_lease import ShapedLease, Starving
from executor_adapter.pools.cluster.leasing.shapes import ShapedLeases
from executor_adapter.pools.cluster.remote_agent import RemoteAgent

logger = logging.getLogger("executor_adapter.cluster")

AWAITED_INTERVAL = 1.0
"""Seconds between two looks for idle leases while others are waited for."""

PATIENCE = 2.0
"""Seconds for which a shape waits for its first lease before it gets a turn."""

FIRST_TURN = 5.0
LONGEST_TURN = 300.0
"""Seconds of the first turn of a shape, and of its last ones: each that brings no lease is twice as long as before."""


class LeasesOwner(Protocol):
    """Defines what is needed of the pool whose leases these are. Supervisor thread only."""

    supervisor: PoolSupervisor
    agents: list[RemoteAgent]
    queue: SlotQueue
    shapes: ShapedLeases

    @property
    def slots(self) -> int:
        """Number of slots that the pool has."""

    def release(self, agent: RemoteAgent) -> None:
        """Give back a slot of an agent that no attempt uses."""


class LeaseWatch:
    """Looks twice in `lease_idle` seconds for idle leases, and each second while any lease is waited for.

    A shape that waits for its first lease all the same gets a turn: on nodes that could hold one, busy leases of others
    go back when their attempts end, as many as it needs. From then on nothing is asked for any other shape, until it
    has its lease or its turn is over.
    """

    def __init__(self, pool: LeasesOwner, lease_idle: float) -> None:
        self._pool = pool
        self._supervisor = pool.supervisor
        self._interval = lease_idle / 2
        self._timer: Timer | None = None
        self._due = math.inf
        self._looked_at = self._supervisor.now()
        self._since: dict[Shape, float] = {}
        """When each shape was first seen without a lease."""
        self._in_vain: Counter[Shape] = Counter()
        """How many turns of each shape have brought it no lease."""
        self._turn: Shape | None = None
        self._went_back: dict[RemoteAgent, list[Shape]] = {}
        """The shapes of the leases that have gone back in this turn."""
        self._went_back_at = 0.0
        """When the first of them did."""
        self._next_turn = 0.0

    # --- looking ---

    def begin(self) -> None:
        """Look from now on, and soon if anything is waited for."""
        interval = min(self._interval, AWAITED_INTERVAL) if self._is_awaited else self._interval
        due = self._supervisor.now() + interval
        if self._timer is not None and due >= self._due:
            return
        self.cancel()
        self._timer, self._due = self._supervisor.call_at(due, self._look), due

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _is_awaited(self) -> bool:
        return bool(self._pool.queue.waiting) or self._pool.shapes.are_awaited

    def _look(self) -> None:
        self._timer = None
        if self._is_awaited or self._supervisor.now() >= self._looked_at + self._interval:
            self._looked_at = self._supervisor.now()
            self._release_idle()
        self._look_for_starving()
        if not all(agent.is_unused for agent in self._pool.agents):
            self.begin()

    def _release_idle(self) -> None:
        """Give back what was not used since the last look."""
        for agent in list(self._pool.agents):
            for _ in range(min(agent.free, agent.slots - agent.fewest_plain)):
                self._pool.release(agent)
        self._pool.shapes.release_idle()
        for agent in self._pool.agents:
            agent.fewest_plain = agent.plain

    # --- turns ---

    def may_ask_for(self, shape: Shape) -> bool:
        """Return whether leases of a shape may be asked for: none has gone back for the sake of another one."""
        return not self._went_back or self._turn == shape

    def on_granted(self, shape: Shape) -> None:
        """Take note of a new lease: it ends the turn of its shape."""
        self._since.pop(shape, None)
        del self._in_vain[shape]
        if shape == self._turn:
            self._end_turn("one is granted")

    def on_retired(self, agent: RemoteAgent, shape: Shape) -> None:
        """Take note that a lease is about to go back for the sake of another shape, which nothing else may get now."""
        is_first = not self._went_back
        self._went_back.setdefault(agent, []).append(shape)
        if is_first:
            self._went_back_at = self._supervisor.now()
            self._ask_again()

    def release_retiring(self, agent: RemoteAgent) -> None:
        """Give back what an agent is to give back and does not use."""
        self._pool.shapes.release_retiring(agent)
        while agent.retiring and agent.plain < agent.slots:
            agent.retiring -= 1
            self.on_retired(agent, ())
            self._pool.release(agent)

    def _look_for_starving(self) -> None:
        now = self._supervisor.now()
        starving = self._starving()
        self._since = {shape: self._since.get(shape, now) for shape in starving}
        for shape in self._in_vain.keys() - starving.keys():
            del self._in_vain[shape]
        if self._turn is None:
            if now >= self._next_turn:
                self._begin_turn(starving, now)
        elif self._turn not in starving:
            self._end_turn("none waits any more")
        elif self._went_back and now >= self._went_back_at + self._seconds_of(self._turn):
            self._next_turn = now + self._seconds_of(self._turn)  # The others get as long.
            self._in_vain[self._turn] += 1
            self._end_turn(f"no node has granted one within {now - self._went_back_at:.0f} s")
        else:
            self._retire_for(self._turn, starving[self._turn])

    def _starving(self) -> dict[Shape, Starving]:
        waiting = len(self._pool.queue.waiting)
        plain = {(): Starving(waiting, None)} if waiting and not self._pool.slots else {}
        return self._pool.shapes.starving() | plain

    def _seconds_of(self, shape: Shape) -> float:
        return float(min(FIRST_TURN * 2 ** self._in_vain[shape], LONGEST_TURN))

    def _begin_turn(self, starving: dict[Shape, Starving], now: float) -> None:
        for shape, since in sorted(self._since.items(), key=lambda item: item[1]):
            if now - since >= PATIENCE:
                self._turn = shape
                if self._retire_for(shape, starving[shape]):
                    logger.info(
                        "jobs that need %s get the next free places: they have waited %.0f s", _name(shape), now - since
                    )
                    return
                self._turn = None

    def _end_turn(self, why: str) -> None:
        assert self._turn is not None
        logger.info("jobs that need %s get no more places than others: %s", _name(self._turn), why)
        self._turn = None
        self._went_back.clear()
        for agent in self._pool.agents:
            agent.retiring = 0
            for lease in agent.shaped:
                lease.is_retiring = False
        self._ask_again()

    def _ask_again(self) -> None:
        self._pool.queue.ask_again()
        self._pool.shapes.ask_again()

    def _retire_for(self, shape: Shape, starving: Starving) -> bool:
        """Let as many leases retire as one of this shape needs, on as many nodes as leases are wanted.

        Return whether any does. Each turn begins with other nodes: what it needs may be another program's on the first.
        """
        able = [
            agent
            for agent in self._pool.agents
            if not agent.is_unused and (starving.nodes is None or agent.node in starving.nodes)
        ]
        first = self._in_vain[shape] * starving.leases % max(1, len(able))
        chosen = (able[first:] + able[:first])[: starving.leases]
        retiring = [agent for agent in chosen if _retire_on(agent, shape, self._went_back.get(agent, ()))]
        for agent in retiring:
            self.release_retiring(agent)
        return bool(retiring)


def _name(shape: Shape) -> str:
    return shape_text(shape) if shape else "a slot"


def _with_slot(shape: Shape) -> dict[str, int]:
    """Return what a lease takes; each takes a slot, which is a processor if nothing else is said."""
    return {CPU: UNITS, **dict(shape)}


def _retire_on(agent: RemoteAgent, shape: Shape, went_back: Iterable[Shape]) -> bool:
    """Let leases of an agent retire until they hold what a shape needs, or none is left that holds any of it.

    Return whether any does. Those that hold what is rare come first, then plain slots.
    """
    lacks = _with_slot(shape)
    retiring = [lease.shape for lease in agent.shaped if lease.is_retiring] + [()] * agent.retiring
    for each in (*went_back, *retiring):
        _subtract(lacks, each)
    for lease in sorted(agent.shaped, key=lambda lease: lease.number):
        if any(name in lacks and name != CPU for name, _ in lease.shape):
            _retire(lease, lacks)
    while CPU in lacks and agent.retiring < agent.slots:
        agent.retiring += 1
        _subtract(lacks, ())
    for lease in sorted(agent.shaped, key=lambda lease: lease.number):
        if CPU in lacks:
            _retire(lease, lacks)
    return agent.retiring > 0 or any(lease.is_retiring for lease in agent.shaped)


def _retire(lease: ShapedLease, lacks: dict[str, int]) -> None:
    if not lease.is_retiring:
        lease.is_retiring = True
        _subtract(lacks, lease.shape)


def _subtract(lacks: dict[str, int], shape: Shape) -> None:
    for name, units in _with_slot(shape).items():
        if lacks.get(name, 0) <= units:
            lacks.pop(name, None)
        else:
            lacks[name] -= units
