"""Tests which leases of a pool go back to their engine, and for how long they are not asked for again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from executor_adapter.job import UNITS, Shape, shape_of
from executor_adapter.pools.cluster.grants import LeaseWatch, Starving
from executor_adapter.pools.cluster.remote_agent import Holding, Lease

TWO_CPUS = shape_of({"CPU": 2 * UNITS})
GPU = shape_of({"GPU": UNITS})
MAX_GRANT = 2.0


class Agent:
    """An agent whose leases are all busy until a test lets some end."""

    def __init__(self, node: str, slots: int, shape: Shape = ()) -> None:
        self.node = node
        self.of_shape = Holding([Lease(n, shape, 0.0) for n in range(slots)], used=slots, most=slots)
        self.held = {shape: self.of_shape}

    @property
    def leases(self) -> list[Lease]:
        return self.of_shape.leases

    @property
    def retiring(self) -> int:
        return self.of_shape.retiring

    def let_use_since(self, *times: float) -> None:
        """Let its leases be as old as that."""
        for lease, since in zip(self.leases, times, strict=True):
            lease.since = since


class Pool:
    """A pool with a clock that tests move, beside others that tests let wait."""

    def __init__(self, *agents: Agent) -> None:
        self.agents = list(agents)
        self.time = 0.0
        self.others: dict[str, int] = {}
        self.took: float | None = 0.0
        self.asked: list[float] = []
        self.wanted: dict[Shape, Starving] = {}
        self.released: list[str] = []
        self.due: list[tuple[float, Any]] = []
        self.supervisor = self.source = cast("Any", self)
        self.are_awaited = True
        self.rests: dict[Shape, float] = {}
        self.watch = LeaseWatch(*[cast("Any", self)] * 2, 10.0, MAX_GRANT)
        self.watch.begin()

    # What the watch asks of the supervisor.

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Any) -> Any:
        self.due.append((when, callback))
        return self

    def cancel(self) -> None:
        """No timer is cancelled here."""

    # What it asks of the pool and its books.

    def look_for_others(self) -> None:
        self.asked.append(self.time)
        if self.took is not None:
            self.watch.on_others(self.others, self.took)

    def release(self, agent: Agent, shape: Shape) -> None:
        agent.leases.pop()
        self.released.append(agent.node)

    def spare(self, shape: Shape) -> int:
        return sum(agent.of_shape.unused for agent in self.agents)

    def surplus(self, shape: Shape) -> int:
        return self.spare(shape)

    def starving(self) -> dict[Shape, Starving]:
        return self.wanted

    def close_unused(self, agent: Agent) -> None:
        if not agent.leases and not self.rests:
            self.agents.remove(agent)

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

    def end_attempt(self, agent: Agent) -> None:
        """Let an attempt end; another one starts unless its lease goes back."""
        agent.of_shape.used -= 1
        self.watch.release_retiring(cast("Any", agent))
        agent.of_shape.used = len(agent.leases)


@pytest.fixture
def two_nodes() -> Pool:
    """Two nodes with four busy slots each."""
    return Pool(Agent("a", 4), Agent("b", 4))


def test_as_many_slots_go_back_as_others_wait_for(two_nodes: Pool) -> None:
    """Of the old leases on a node as many go back as are waited for there, and no slot is asked for in that time."""
    two_nodes.others = {"b": 2}
    first, second = two_nodes.agents
    two_nodes.let(MAX_GRANT - 0.1)
    assert second.retiring == 0
    two_nodes.let(1)
    assert (first.retiring, second.retiring) == (0, 2)
    assert () not in two_nodes.rests
    for _ in range(4):
        two_nodes.end_attempt(second)
    two_nodes.others = {}
    assert (two_nodes.released, second.retiring) == (["b", "b"], 0)
    assert () in two_nodes.rests
    assert GPU not in two_nodes.rests
    two_nodes.let(MAX_GRANT + 0.5)
    assert () not in two_nodes.rests
    two_nodes.let(60)
    assert len(two_nodes.released) == 2


def test_slots_are_asked_for_again_as_soon_as_nobody_waits_any_more() -> None:
    """What went back is asked for again when nobody waits at two looks in a row, though nothing else may go back."""
    pool = Pool(Agent("a", 1))
    pool.others = {"a": 1}
    pool.let(MAX_GRANT + 0.5)
    pool.end_attempt(pool.agents[0])
    pool.let(0.5)
    pool.others = {"a": 0}
    pool.let(0.5)
    assert () in pool.rests
    pool.let(0.5)
    assert () not in pool.rests


def test_an_agent_whose_leases_went_back_for_others_stays_for_those_that_follow() -> None:
    """It ends neither while its pool asks for nothing, nor while that waits for leases, and does so afterwards."""
    pool = Pool(Agent("a", 1))
    (agent,) = pool.agents
    pool.others = {"a": 1}
    pool.let(MAX_GRANT + 1)
    pool.end_attempt(agent)
    pool.close_unused(agent)
    pool.let(MAX_GRANT + 1)
    assert pool.released == ["a"]
    assert pool.agents == [agent]
    pool.are_awaited = False
    pool.let(1)
    assert pool.agents == []


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.5), (0.3, 3.0), (60.0, 20.0)])
def test_the_engine_is_asked_the_less_often_the_longer_it_takes(two_nodes: Pool, took: float, pause: float) -> None:
    """Who waits is asked so seldom that the answers take a tenth of the time, and each 20 seconds at least."""
    two_nodes.took = took
    two_nodes.let(MAX_GRANT + 2.5 * pause)
    assert two_nodes.asked == [MAX_GRANT, MAX_GRANT + pause, MAX_GRANT + 2 * pause]
    two_nodes.took = None
    two_nodes.let(300)
    assert len(two_nodes.asked) == 4, "no second question while the first has no answer"


def test_a_young_lease_stays(two_nodes: Pool) -> None:
    """What the pool has got just now stays, whoever waits."""
    two_nodes.others = {"a": 9}
    first = two_nodes.agents[0]
    first.let_use_since(0.0, 3.0, 3.0, 3.0)
    two_nodes.let(MAX_GRANT + 1)
    assert first.retiring == 1


def test_leases_with_a_shape_go_back_too() -> None:
    """All old leases with a shape retire where others wait, since each may have what they need, and no young one."""
    agent = Agent("a", 4, GPU)
    pool = Pool(agent)
    agent.let_use_since(0.0, 0.0, 3.0, 3.0)
    pool.others = {"a": 1}
    pool.let(MAX_GRANT + 1)
    assert agent.retiring == 2
    pool.end_attempt(agent)
    assert (agent.retiring, pool.released, GPU in pool.rests) == (1, ["a"], True)


def test_a_shape_of_the_pool_that_has_no_lease_counts_as_others(two_nodes: Pool) -> None:
    """Jobs for two processors get two slots of one node that could hold them, the one with the oldest lease."""
    two_nodes.wanted = {TWO_CPUS: Starving(1, {"a", "b"})}
    first, second = two_nodes.agents
    first.let_use_since(1.0, 1.0, 1.0, 1.0)
    second.let_use_since(0.5, 1.0, 1.0, 1.0)
    two_nodes.let(MAX_GRANT + 2)
    assert (first.retiring, second.retiring) == (0, 2)


def test_nothing_goes_back_for_a_shape_that_has_got_a_lease_since(two_nodes: Pool) -> None:
    """An attempt that ends when the shape it was to make place for has a lease keeps its own; else it goes back."""
    two_nodes.wanted = {TWO_CPUS: Starving(1, {"a"})}
    two_nodes.let(MAX_GRANT + 1)
    agent = next(each for each in two_nodes.agents if each.node == "a")
    wanted, two_nodes.wanted = two_nodes.wanted, {}
    two_nodes.end_attempt(agent)
    assert two_nodes.released == []
    two_nodes.wanted = wanted
    two_nodes.end_attempt(agent)
    assert two_nodes.released == ["a"]


def test_nothing_goes_back_for_what_waits_a_moment_only(two_nodes: Pool) -> None:
    """What is not seen to wait at two looks in a row takes nothing."""
    two_nodes.let(MAX_GRANT)
    for _ in range(3):
        two_nodes.others = {"a": 1}
        two_nodes.let(0.5)
        two_nodes.others = {}
        two_nodes.let(0.5)
    assert [agent.retiring for agent in two_nodes.agents] == [0, 0]


def idle_pool() -> Pool:
    """Return a pool with two slots that nothing uses, which has looked a second ago since something was awaited."""
    pool = Pool(Agent("a", 2))
    pool.let(1.0)
    pool.agents[0].of_shape.used = pool.agents[0].of_shape.most = 0
    return pool


def test_an_idle_slot_stays_while_nothing_waits() -> None:
    """What is not used goes back after `lease_idle` and not before half of it, also where something waited lately."""
    pool = idle_pool()
    pool.are_awaited = False
    pool.let(4.9)
    assert pool.released == []
    pool.let(5.1)
    assert pool.released == ["a", "a"]


def test_a_slot_that_was_used_lately_stays() -> None:
    """What was in use at any time since the last look is not idle, though nothing uses it now."""
    pool = idle_pool()
    pool.are_awaited, pool.agents[0].of_shape.most = False, 2
    pool.let(9)
    assert pool.released == []
    pool.let(5)
    assert pool.released == ["a", "a"]


def test_an_idle_slot_goes_back_soon_while_anything_waits() -> None:
    """What is not used goes back at the next look where something else could have its place."""
    pool = idle_pool()
    pool.let(1.1)
    assert pool.released == ["a", "a"]
