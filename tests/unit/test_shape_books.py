"""Tests the books of a pool of leases: what is asked for, what attempts start on, and when they fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, cast

import pytest

from executor_adapter import Job
from executor_adapter.config import ClusterSettings
from executor_adapter.job import UNITS, Shape, shape_of
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.grants import ShapeBooks
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from executor_adapter.pools.transport.envelope import Outcome
from executor_adapter.worker import wire

GPU = shape_of({"GPU": UNITS})
SHAPES = pytest.mark.parametrize("shape", [(), GPU], ids=["plain", "shaped"])
TIMEOUT, LOST_AFTER = 60.0, 3600.0


class Source(LeaseSource):
    """Knows what is asked for, and counts what goes back; tests grant leases."""

    def __init__(self, books: ShapeBooks) -> None:
        self._books = books
        self.shapes: dict[int, Shape] = {}
        self.released = 0

    @property
    def asked(self) -> Counter[Shape]:
        """How many leases of each shape are asked for."""
        return Counter(self.shapes.values())

    def ask(self, leases: Sequence[int]) -> None:
        self.shapes.update((lease, self._books.asked[lease]) for lease in leases)

    def withdraw(self, lease: int) -> None:
        del self.shapes[lease]

    def look_for_nodes(self, shapes: Collection[Shape]) -> None:
        """Say nothing."""

    def release(self, agent: RemoteAgent, lease: int) -> None:
        self.released += 1

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        """Nothing is kept of an agent."""

    def close(self, on_closed: Callable[[], None]) -> None:
        on_closed()


class Pool(RemotePool):
    """A pool whose agents are tests, and whose clock they move."""

    name: ClassVar[str] = "test"

    def __init__(self, max_workers: int = 4) -> None:
        self.time = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.outcomes: list[str] = []
        self.handed: list[Assignment] = []
        self.given = 0
        super().__init__(
            cast("Any", self), max_workers, cluster=ClusterSettings(node_timeout=TIMEOUT, lost_after=LOST_AFTER)
        )
        self.supervisor = cast("Any", self)
        self.source = self.leases = Source(self.shapes)

    # What a pool asks of its supervisor.

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self.due.append((when, callback))
        return _Timer(self.due, (when, callback))

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.call_at(self.time, lambda: callback(*args))

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        self.read = on_readable

    def watch_writable(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """All is sent at once."""

    def unwatch(self, fd: int) -> None:
        """Nothing is watched."""

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self.outcomes.append(outcome.error.text if outcome.error else "")

    def handed_back(self, assignment: Assignment) -> None:
        self.handed.append(assignment)

    # What tests do.

    def add_agent(self, node: str = "a") -> RemoteAgent:
        """Connect an agent. Tests have one, or let the newest alone say something."""
        self.end_of_newest = _End()
        agent = self.connect(cast("Any", self.end_of_newest), node)
        self.on_hello(agent, frames.hello(node))
        return agent

    def receive(self, kind: int, seq: int = 0) -> None:
        """Let the newest agent send a frame."""
        self.end_of_newest.arriving = wire.pack_frame(kind, seq=seq)
        self.read()

    def receive_end(self) -> None:
        """Let the stream of the newest agent end."""
        self.end_of_newest.arriving = b""
        self.read()

    def grant(self, agent: RemoteAgent, shape: Shape, count: int = 1) -> None:
        """Grant leases that were asked for, or are asked for now."""
        for _ in range(count):
            if shape not in self.leases.asked:
                self.leases.shapes[1000 + self.given] = self.shapes.asked[1000 + self.given] = shape
            lease = next(lease for lease, asked in self.leases.shapes.items() if asked == shape)
            del self.leases.shapes[lease]
            self.given += 1
            self.granted(agent, lease)

    def attempt(self, shape: Shape, *args: object, max_behind: int = 0) -> Assignment:
        """Make an attempt, which may be queued behind others if `max_behind` is not 0."""
        job = Job(function="builtins:print", args=args, resources=None)
        job.live.resources = dict(shape) or None
        assignment = Assignment(job, 1, self.prepare(job))
        assignment.max_behind = max_behind
        return assignment

    def submit(self, shape: Shape, *args: object, max_behind: int = 0) -> Assignment:
        """Start an attempt, as the supervisor does with plain ones at once, and with others when they have a lease."""
        assignment = self.attempt(shape, *args, max_behind=max_behind)
        self.start(assignment)
        return assignment

    def end(self, assignment: Assignment) -> None:
        """Let an attempt end on its node."""
        self.receive(frames.HANDED_BACK, assignment.worker[1])

    def let(self, seconds: float) -> None:
        """Let time pass."""
        until = self.time + seconds
        while self.due and min(self.due, key=lambda each: each[0])[0] <= until:
            first = min(self.due, key=lambda each: each[0])
            self.due.remove(first)
            self.time = first[0]
            first[1]()
        self.time = until


class _Timer:
    def __init__(self, due: list[Any], entry: Any) -> None:
        self._due, self._entry = due, entry

    def cancel(self) -> None:
        if self._entry in self._due:
            self._due.remove(self._entry)


class _End:
    """A stream on which all is sent, and what tests let arrive is read."""

    read_fd = write_fd = 0
    arriving = b""

    def receive(self, buffer: bytearray) -> int:
        buffer[: len(self.arriving)] = self.arriving
        return len(self.arriving)

    def send(self, data: memoryview) -> int:
        return len(data)

    def close(self) -> None:
        """Nothing is open."""


@SHAPES
def test_attempts_start_on_leases_as_they_are_granted(shape: Shape) -> None:
    """What waits asks for a lease each, and starts when there is one; what is taken back asks for none any more."""
    pool = Pool()
    first, second, third = (pool.submit(shape) for _ in range(3))
    assert pool.leases.asked[shape] == 3
    agent = pool.add_agent()
    pool.grant(agent, shape)
    assert [each.worker is not None for each in (first, second, third)] == [True, False, False]
    pool.recall(third)
    assert (pool.handed, pool.leases.asked[shape], pool.busy) == ([third], 1, 2)
    pool.end(first)
    assert second.worker is not None
    pool.end(second)
    assert (pool.busy, pool.leases.released) == (0, 0)


def test_plain_attempts_that_follow_one_another_ask_once() -> None:
    """A slot that was asked for stays so where another one became free meanwhile: the next job wants it."""
    pool = Pool()
    first, _ = pool.submit(()), pool.submit(())
    pool.grant(pool.add_agent(), ())
    asked = pool.leases.asked
    pool.end(first)
    assert pool.leases.asked == asked
    pool.submit(())
    assert pool.leases.asked == asked


@pytest.mark.parametrize(("max_behind", "takes"), [(0, False), (8, True)], ids=["a long one", "a short one"])
def test_short_attempts_queue_behind_short_ones_alone(max_behind: int, takes: bool) -> None:
    """A node whose slots are taken queues a short attempt behind a short one, and not behind a long one."""
    pool = Pool()
    pool.grant(pool.add_agent(), ())
    for _ in range(2):  # What has ended does not count.
        running = pool.submit((), max_behind=max_behind)
        behind = pool.attempt((), max_behind=8)
        assert pool.queue_behind(behind) is takes
        for each in (running, behind)[: 1 + takes]:
            pool.end(each)


@SHAPES
def test_attempts_go_to_the_node_with_the_most_room(shape: Shape) -> None:
    """Of a few nodes the one with the largest share of free slots gets the next attempt."""
    pool = Pool()
    small, large = pool.add_agent("a"), pool.add_agent("b")
    pool.grant(small, shape, 1)
    pool.grant(large, shape, 3)
    nodes = [pool.submit(shape).node for _ in range(4)]
    assert set(nodes[:2]) == {"a", "b"}
    assert nodes[2:] == ["b", "b"]


@SHAPES
def test_a_node_with_room_is_found_among_many_that_are_full(shape: Shape) -> None:
    """Where one of many nodes gets room, the next attempt goes there."""
    pool = Pool(max_workers=20)
    for node in range(20):
        pool.grant(pool.add_agent(str(node)), shape)
    running = [pool.submit(shape) for _ in range(20)]
    assert len({each.node for each in running}) == 20
    waiting = pool.submit(shape)
    assert waiting.worker is None
    pool.recall(waiting)
    ended = next(each for each in running if each.node == "19")
    pool.end(ended)
    assert pool.submit(shape).node == "19"


def test_a_smaller_pool_asks_for_fewer_slots() -> None:
    """No more plain slots are asked for than the pool may have; one that was withdrawn is not taken."""
    pool = Pool(max_workers=4)
    for _ in range(4):
        pool.submit(())
    pool.grant(pool.add_agent(), (), 2)
    asked = set(pool.leases.shapes)
    pool.resize(3)
    assert pool.leases.asked[()] == 1
    (withdrawn,) = asked - set(pool.leases.shapes)
    pool.granted(pool.agents[0], withdrawn)
    assert pool.shapes.count(()) == 2
    pool.grant(pool.agents[0], ())
    assert (pool.shapes.count(()), pool.leases.released) == (3, 0)


def test_a_lease_is_kept_for_a_job_until_its_attempt_starts() -> None:
    """A lease that is kept for one job is none for another, does not go back, and is free again without that job."""
    pool = Pool()
    pool.shapes.set_demand(GPU, 1)
    pool.grant(pool.add_agent(), GPU)
    assert pool.shapes.has_lease(GPU)
    job = Job(function="os:getpid")
    job.live.resources = dict(GPU)
    pool.shapes.reserve(job, GPU)
    pool.shapes.set_demand(GPU, 0)
    assert not pool.shapes.has_lease(GPU)
    pool.let(30.0)
    assert pool.leases.released == 0
    pool.shapes.unreserve(job)
    assert pool.shapes.has_lease(GPU)
    pool.let(30.0)
    assert (pool.leases.released, pool.leases.asked[GPU]) == (1, 0)


def test_a_lease_that_was_obtained_ahead_stays_while_a_job_waits_for_it() -> None:
    """It is not idle while its job waits for a slot of the executor; what no job waits for goes back."""
    pool = Pool()
    pool.shapes.set_demand(GPU, 1)
    pool.grant(pool.add_agent(), GPU, 2)
    pool.let(30.0)
    assert (pool.shapes.has_lease(GPU), pool.leases.released) == (True, 1)
    pool.shapes.set_demand(GPU, 0)
    pool.let(30.0)
    assert (pool.shapes.has_lease(GPU), pool.leases.released) == (False, 2)


@SHAPES
def test_what_waits_fails_with_the_reason_once_no_node_could_run_it_for_a_while(shape: Shape) -> None:
    """A failure of nodes is in the error of what waits for `node_timeout`, and of what is tried again after it."""
    pool = Pool()
    for _ in range(2):
        attempt = pool.submit(shape)
        pool.shapes.on_failure(shape, "node7 has Python 3.9")
        pool.let(TIMEOUT - 1)
        assert attempt in pool.unstarted()
        pool.let(1)
        assert (pool.busy, pool.leases.asked[shape]) == (0, 0)
    assert pool.outcomes == ["no node of pool='test' can run the job: node7 has Python 3.9"] * 2


@SHAPES
def test_what_a_node_could_run_waits_for_others_to_end(shape: Shape) -> None:
    """An attempt does not fail as long as a node could run it; where none could any more, it has the whole time."""
    pool = Pool()
    pool.submit(shape)
    for _ in range(10):
        pool.let(TIMEOUT / 2)
        pool.shapes.on_nodes_sought(shape, ["a"], "" if shape else "1 could have it, and none gives it")
    assert pool.outcomes == []
    pool.shapes.on_nodes_sought(shape, [], "none has it")
    pool.let(TIMEOUT - 1)
    assert pool.outcomes == []
    pool.let(1)
    assert len(pool.outcomes) == 1


@SHAPES
def test_what_was_refused_fails_at_once(shape: Shape) -> None:
    """Where no further try helps, what waits fails, and what has leases goes on."""
    pool = Pool()
    pool.submit(shape)
    pool.shapes.refuse_all("the cluster cannot be reached")
    assert len(pool.outcomes) == 1
    running = pool.submit(shape)
    pool.grant(pool.add_agent(), shape)
    waiting = pool.submit(shape)
    pool.shapes.refuse_all("the cluster cannot be reached")
    assert (len(pool.outcomes), pool.unstarted()) == (1, [waiting, running])


@SHAPES
def test_a_node_that_leaves_gives_its_leases_back(shape: Shape) -> None:
    """Unused leases of a node that is about to leave go back at once, and the others as their attempts end."""
    pool = Pool()
    agent = pool.add_agent()
    pool.grant(agent, shape, 3)
    running = [pool.submit(shape) for _ in range(2)]
    pool.receive(frames.LEAVING)
    assert pool.leases.released == 1
    waiting = pool.submit(shape)
    assert (waiting.worker, pool.leases.asked[shape]) == (None, 1)
    for attempt in running:
        pool.end(attempt)
    assert (pool.leases.released, waiting.worker) == (3, None)


@SHAPES
def test_the_leases_of_a_lost_node_are_asked_for_again(shape: Shape) -> None:
    """What waits while a node is lost asks for a lease on another one."""
    pool = Pool()
    agent = pool.add_agent()
    pool.grant(agent, shape)
    pool.submit(shape)
    pool.submit(shape)
    agent.give_up("it was silent")
    assert (pool.busy, pool.leases.asked[shape]) == (1, 1)


@SHAPES
def test_what_was_sent_to_a_node_counts_as_begun_unless_its_stream_says_otherwise(shape: Shape) -> None:
    """Where a stream ends, what was not GIVEN is handed back; where a node falls silent, that may have been lost."""
    pool = Pool()
    pool.grant(pool.add_agent(), shape)
    pool.submit(shape)
    pool.receive_end()
    assert (len(pool.handed), pool.outcomes) == (1, [])
    pool.grant(pool.add_agent(), shape)
    pool.submit(shape)
    pool.let(2 * LOST_AFTER)
    assert (len(pool.handed), len(pool.outcomes)) == (1, 1)
    assert "it was silent for" in pool.outcomes[0]
    # A large argument that has not left yet.
    pool.grant(pool.add_agent(), shape)
    pool.submit(shape, bytes(10_000_000))
    pool.let(2 * LOST_AFTER)
    assert (len(pool.handed), len(pool.outcomes)) == (2, 1)
