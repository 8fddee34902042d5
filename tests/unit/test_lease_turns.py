"""Tests which leases go back for a shape that gets none, and for how long nothing else is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from executor_adapter.job import UNITS, Shape, shape_of
from executor_adapter.pools.cluster.leasing.shaped_lease import ShapedLease, Starving
from executor_adapter.pools.cluster.leasing.turns import FIRST_TURN, PATIENCE, LeaseWatch

TWO_CPUS = shape_of({"CPU": 2 * UNITS})
GPU = shape_of({"GPU": UNITS})
GPU_AND_LICENSE = shape_of({"GPU": UNITS, "license": UNITS})


@dataclass(eq=False)
class Agent:
    """An agent whose slots are all busy until a test lets some end."""

    node: str
    slots: int
    shaped: set[ShapedLease] = field(default_factory=set)
    retiring: int = 0
    free: int = 0
    is_unused: bool = False

    def __post_init__(self) -> None:
        self.plain = self.fewest_plain = self.slots


class Pool:
    """A pool with a clock that tests move, and shapes that tests let starve."""

    def __init__(self, *agents: Agent) -> None:
        self.agents = list(agents)
        self.time = 0.0
        self.wanted: dict[Shape, Starving] = {}
        self.released: list[str] = []
        self.due: list[tuple[float, Any]] = []
        self.supervisor = self.queue = self.shapes = cast("Any", self)
        self.waiting: list[Any] = []
        self.are_awaited = True
        self.watch = LeaseWatch(cast("Any", self), lease_idle=10.0)
        self.watch.begin()

    # What the watch asks of the supervisor.

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Any) -> Any:
        self.due.append((when, callback))
        return self

    def cancel(self) -> None:
        """No timer is cancelled here."""

    # What it asks of the pool, its queue and its shapes.

    def release(self, agent: Agent) -> None:
        agent.slots -= 1
        self.released.append(agent.node)

    def starving(self) -> dict[Shape, Starving]:
        return self.wanted

    def release_idle(self) -> None:
        """No lease is idle here."""

    def release_retiring(self, agent: Agent) -> None:
        """Leases with a shape are busy here."""

    def ask_again(self) -> None:
        """Nothing is asked for here."""

    # What tests do.

    def let(self, seconds: float) -> None:
        """Let time pass, and the watch look."""
        until = self.time + seconds
        while self.due and self.due[0][0] <= until:
            when, callback = self.due.pop(0)
            self.time = when
            callback()
        self.time = until

    def end_plain(self, agent: Agent) -> None:
        """Let a plain attempt end; another one starts unless its slot goes back."""
        agent.plain -= 1
        self.watch.release_retiring(cast("Any", agent))
        agent.plain = max(0, agent.slots - agent.retiring)


@pytest.fixture
def two_nodes() -> Pool:
    """Two nodes with four busy slots each."""
    return Pool(Agent("a", 4), Agent("b", 4))


def test_as_many_slots_go_back_as_are_needed(two_nodes: Pool) -> None:
    """A lease of two processors gets two slots of one node, and nothing else is asked for until it is granted."""
    two_nodes.wanted = {TWO_CPUS: Starving(1, {"b"})}
    node = two_nodes.agents[1]
    two_nodes.let(PATIENCE + 2)
    assert node.retiring == 2
    assert two_nodes.watch.may_ask_for(())
    for _ in range(4):
        two_nodes.end_plain(node)
    two_nodes.let(2)
    assert (two_nodes.released, node.retiring) == (["b", "b"], 0)
    assert not two_nodes.watch.may_ask_for(())
    assert two_nodes.watch.may_ask_for(TWO_CPUS)
    two_nodes.wanted = {}
    two_nodes.watch.on_granted(TWO_CPUS)
    assert two_nodes.watch.may_ask_for(())
    two_nodes.let(60)
    assert len(two_nodes.released) == 2


def test_what_is_rare_goes_back_and_nothing_beside_it() -> None:
    """A lease that holds the GPU retires, and no slot, since it holds one too."""
    holder = ShapedLease(1, GPU_AND_LICENSE)
    pool = Pool(Agent("a", 4, shaped={holder, ShapedLease(2, shape_of({"license": UNITS}))}))
    pool.wanted = {GPU: Starving(1, {"a"})}
    pool.let(PATIENCE + 2)
    assert [lease for lease in pool.agents[0].shaped if lease.is_retiring] == [holder]
    assert pool.agents[0].retiring == 0


def test_a_turn_in_vain_is_followed_by_a_rest_and_by_another_node(two_nodes: Pool) -> None:
    """Where no lease is granted, the others get as long, and then the next node gives slots back, for twice as long."""
    two_nodes.wanted = {GPU: Starving(1, None)}
    first, second = two_nodes.agents
    two_nodes.let(PATIENCE + 2)
    two_nodes.end_plain(first)
    assert not two_nodes.watch.may_ask_for(())
    two_nodes.let(FIRST_TURN + 1)
    assert two_nodes.watch.may_ask_for(())
    assert (first.retiring, second.retiring) == (0, 0)
    two_nodes.let(FIRST_TURN + 1)
    assert (first.retiring, second.retiring) == (0, 1)
    two_nodes.end_plain(second)
    two_nodes.let(2 * FIRST_TURN - 1)
    assert not two_nodes.watch.may_ask_for(())
    two_nodes.let(3)
    assert two_nodes.watch.may_ask_for(())


def test_nothing_goes_back_for_a_shape_that_waits_a_moment_only(two_nodes: Pool) -> None:
    """A shape that gets its lease soon takes none of others."""
    two_nodes.wanted = {GPU: Starving(1, None)}
    two_nodes.let(PATIENCE - 0.1)
    two_nodes.wanted = {}
    two_nodes.let(1.5)
    two_nodes.wanted = {GPU: Starving(1, None)}
    two_nodes.let(PATIENCE - 0.1)
    assert [agent.retiring for agent in two_nodes.agents] == [0, 0]


def idle_pool() -> Pool:
    """Return a pool with two slots that nothing uses, which has looked a second ago since something was awaited."""
    pool = Pool(Agent("a", 2))
    pool.let(1.0)
    pool.agents[0].plain = pool.agents[0].fewest_plain = 0
    pool.agents[0].free = 2
    return pool


def test_an_idle_slot_stays_while_nothing_waits() -> None:
    """What is not used goes back after `lease_idle` and not before half of it, also where something waited lately."""
    pool = idle_pool()
    pool.are_awaited = False
    pool.let(4.9)
    assert pool.released == []
    pool.let(5.1)
    assert pool.released == ["a", "a"]


def test_an_idle_slot_goes_back_soon_while_anything_waits() -> None:
    """What is not used goes back at the next look where something else could have its place."""
    pool = idle_pool()
    pool.let(1.1)
    assert pool.released == ["a", "a"]
