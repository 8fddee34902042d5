"""The books of a pool of leases: what attempts wait for, which agent gets one, what is asked for, and what goes back.

`SlotQueue` keeps the plain attempts, which share the slots of an agent. `ShapedLeases` keeps those with resources, of
which each needs a lease of its own. `LeaseWatch` gives leases back to their engine.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.job import CPU, UNITS, Job, Shape, shape_of, shape_text
from executor_adapter.pools.base import Assignment, Timer
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.remote_agent import AgentOwner, RemoteAgent, ShapedLease
from executor_adapter.pools.transport.envelope import crashed

logger = logging.getLogger("executor_adapter.cluster")

LACK_SECONDS = 10.0
"""Seconds without a single node after which it is said what is waited for."""
_MAX_KNOWN_FAILURES = 100
"""Failures of which another one with the same words is no news."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks at what the pool holds."""
MAX_QUESTION_SHARE = 0.1
"""The part of the time in which the engine may be busy with the question what others wait for."""
MAX_QUESTION_INTERVAL = 20.0
"""Seconds after which it is asked again however long the last answer took."""


class LeasesOwner(AgentOwner, Protocol):
    """Defines what the books of leases need of their pool. Supervisor thread only."""

    name: ClassVar[str]
    agents: list[RemoteAgent]
    busy: int
    max_workers: int
    source: LeaseSource

    @property
    def is_closing(self) -> bool:
        """Whether no attempt will be started any more."""

    @property
    def slots(self) -> int:
        """Number of slots that the pool has."""

    def give(self, agent: RemoteAgent, assignment: Assignment, lease: ShapedLease | None = None) -> None:
        """Send an attempt, on a slot or on a lease of its own."""

    def may_ask_for(self, shape: Shape) -> bool:
        """Return whether leases of a shape may be asked for now."""

    def ask_for(self, count: int, shape: Shape) -> None:
        """Ask for so many leases more, or less where the number is negative."""

    def count_leases(self, shape: Shape) -> int:
        """Return the number of leases of a shape, used or free."""

    def release(self, agent: RemoteAgent) -> None:
        """Give back a slot of an agent that no attempt uses."""

    def release_shaped(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        """Give a free lease back."""

    def close_unused(self, agent: RemoteAgent) -> None:
        """Let an agent without a lease end, unless leases have just gone back for others: some may follow soon."""


class SlotQueue:
    """Keeps the attempts that hold a slot of the executor and wait for a lease, and asks for as many as they need.

    `node_timeout`: seconds for which they wait while there is no node at all; None for any time.
    """

    def __init__(self, pool: LeasesOwner, node_timeout: float | None) -> None:
        self.waiting: deque[Assignment] = deque()
        self._pool = pool
        self._node_timeout = node_timeout
        self._requested = 0
        """Leases that were asked for and not granted yet."""
        self._failure = self._lack = ""
        """Why no lease can be had, if that was told, and what is waited for otherwise."""
        self._known_failures: deque[str] = deque(maxlen=_MAX_KNOWN_FAILURES)
        self._look: Timer | None = None
        self._starving_since = 0.0

    def add(self, assignment: Assignment) -> None:
        """Keep an attempt until there is a slot for it."""
        self._pool.busy += 1
        self.waiting.append(assignment)
        self.request()

    def take(self, assignment: Assignment) -> bool:
        """Take an attempt out again; return False if it does not wait."""
        if assignment not in self.waiting:
            return False
        self.waiting.remove(assignment)
        self._pool.busy -= 1
        self.request(withdraws=True)
        return True

    def serve(self) -> None:
        """Send what waits, as far as there are slots for it."""
        while self.waiting and (agent := agent_with_free_slot(self._pool.agents, self.waiting[0])) is not None:
            assignment = self.waiting.popleft()
            self._pool.busy -= 1
            _send(self._pool, agent, assignment)
        self._watch_starving()

    def request(self, *, withdraws: bool = False) -> None:
        """Ask for more leases if more are wanted, and for fewer if fewer are and it `withdraws`."""
        room = self._pool.max_workers - self._pool.slots if self._pool.may_ask_for(()) else 0
        more = max(0, min(len(self.waiting), room)) - self._requested
        if (more > 0 and not self._pool.is_closing) or (more < 0 and withdraws):
            self._requested += more
            self._pool.ask_for(more, ())
        self._watch_starving()

    def on_granted(self) -> None:
        """Take note of a new slot."""
        self._requested = max(0, self._requested - 1)
        self._failure = self._lack = ""

    def note_failure(self, why: str, shape: Shape = ()) -> bool:
        """Remember why no lease can be had. Return whether that is news: several nodes may fail in turn."""
        if not shape:
            self._failure = why
        if why in self._known_failures:
            return False
        self._known_failures.append(why)
        return True

    def refuse(self) -> None:
        """Take note that no lease will be granted any more: what waits fails, unless there are slots."""
        self._requested = 0
        if not self._pool.slots:
            self._fail()

    def close(self) -> None:
        """Ask for nothing any more."""
        self.request(withdraws=True)
        self._end_starving()

    def on_nodes_sought(self, nodes: Collection[str], why: str) -> None:
        """Say what is waited for, where there is no node at all and no failure was told."""
        lack = why or self._lack
        if nodes and not self._failure:  # It is its turn as soon as others end.
            self._starving_since = self._pool.supervisor.now()
        if self._is_starving and not self._failure and lack != self._lack:
            self._lack = lack
            logger.warning("no job of pool=%r can start yet: %s", self._pool.name, lack)

    @property
    def _is_starving(self) -> bool:
        return bool(self.waiting) and not self._pool.slots and not self._pool.is_closing

    def _watch_starving(self) -> None:
        if not self._is_starving:
            self._end_starving()
        elif self._look is None:
            self._starving_since = self._pool.supervisor.now()
            self._look_again()

    def _look_again(self) -> None:
        due = self._pool.supervisor.now() + min(LACK_SECONDS, self._node_timeout or LACK_SECONDS)
        self._look = self._pool.supervisor.call_at(due, self._on_look)

    def _on_look(self) -> None:
        waited = self._pool.supervisor.now() - self._starving_since
        if self._node_timeout is not None and waited >= self._node_timeout:
            self._fail()
        else:
            self._look_again()
            self._pool.source.explain_lack()

    def _end_starving(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _fail(self) -> None:
        self._end_starving()
        waiting, self.waiting = self.waiting, deque()
        why = self._failure or self._lack or "no node has answered yet"
        self._pool.busy -= len(waiting)
        self.request(withdraws=True)
        for assignment in waiting:
            _refuse(self._pool, assignment, why)


def _send(pool: LeasesOwner, agent: RemoteAgent, assignment: Assignment, lease: ShapedLease | None = None) -> bool:
    """Send an attempt that has waited; it ends where that fails, and False is returned."""
    try:
        pool.give(agent, assignment, lease)
    except Exception as error:
        logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
        failure = WorkerUnavailableError(f"the attempt cannot be sent to a node: {error}")
        pool.supervisor.ended(assignment, crashed(failure))
        return False
    return True


def _refuse(pool: LeasesOwner, assignment: Assignment, why: str) -> None:
    error = WorkerUnavailableError(f"no node of pool={pool.name!r} can run the job: {why}")
    pool.supervisor.ended(assignment, crashed(error))


def agent_with_free_slot(agents: Sequence[RemoteAgent], assignment: Assignment) -> RemoteAgent | None:
    """Return an agent that can start the attempt now."""
    near = assignment.payload.near
    free = [agent for agent in _able(agents, assignment) if agent.free]
    return max(free, key=lambda agent: (agent.node == near, agent.free / agent.slots), default=None)


def agent_with_room(agents: Sequence[RemoteAgent], assignment: Assignment) -> RemoteAgent | None:
    """Return an agent that the attempt can be queued at; it has no room where none has."""
    near = assignment.payload.near
    rooms = {agent: agent.room_behind for agent in _able(agents, assignment)}
    return max(rooms, key=lambda agent: (agent.node == near and rooms[agent] > 0, rooms[agent]), default=None)


def _able(agents: Sequence[RemoteAgent], assignment: Assignment) -> Sequence[RemoteAgent]:
    """Return the agents whose nodes are not known to lack a module of the function; all where none is left."""
    number = assignment.payload.function.number
    return [agent for agent in agents if agent.slots and number not in agent.lacking] or agents


class Starving(NamedTuple):
    """A shape that has no lease, and jobs that wait for one."""

    leases: int
    """How many are wanted."""
    nodes: Collection[str] | None
    """The names of the nodes that could hold one; None: all."""


class ShapedLeases:
    """Keeps the books of all shapes. `node_timeout`: seconds for which jobs wait while no node could ever run them."""

    def __init__(self, pool: LeasesOwner, node_timeout: float | None) -> None:
        self._pool = pool
        self._node_timeout = node_timeout
        self._shapes: dict[Shape, _Books] = {}

    # --- what the supervisor asks ---

    def has_lease(self, shape: Shape) -> bool:
        """Return whether a free lease is kept for nobody, or none is to be expected."""
        books = self._shapes.get(shape)
        return books is not None and (books.is_hopeless or len(books.free) > len(books.reserved))

    def reserve(self, job: Job, shape: Shape) -> None:
        """Keep a free lease for the next attempt of a job."""
        self._books(shape).reserved.add(job)

    def unreserve(self, job: Job) -> None:
        """Keep no lease for a job any more."""
        books = self._shapes.get(shape_of(job.live.resources))
        if books is not None and job in books.reserved:
            books.reserved.remove(job)
            self._balance(books)

    def set_demand(self, shape: Shape, count: int) -> None:
        """Let there be so many leases beside those that are kept or in use."""
        books = self._books(shape)
        books.demand = count
        self._balance(books)

    def start(self, assignment: Assignment) -> None:
        """Run an attempt on a lease of its shape; it waits where that is lost meanwhile."""
        books = self._books(shape_of(assignment.job.live.resources))
        books.reserved.discard(assignment.job)
        self._pool.busy += 1
        books.waiting.append(assignment)
        self._serve(books)

    def take(self, assignment: Assignment) -> bool:
        """Take back an attempt that waits for a lease; return False where it does not."""
        for books in self._shapes.values():
            if assignment in books.waiting:
                books.waiting.remove(assignment)
                self._pool.busy -= 1
                self._balance(books)
                return True
        return False

    @property
    def are_awaited(self) -> bool:
        """Whether some node could hold a lease that was asked for and is not granted yet."""
        return any(books.requested and not books.why for books in self._shapes.values())

    def waiting(self) -> list[Assignment]:
        """Return the attempts that wait for a lease."""
        return [assignment for books in self._shapes.values() for assignment in books.waiting]

    # --- what becomes of leases ---

    def granted(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        """Take a lease."""
        books = self._books(lease.shape)
        books.requested = max(0, books.requested - 1)
        books.is_hopeless, books.failure = False, ""
        self.on_placeable(lease.shape)
        self.on_free(agent, lease)

    def on_free(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        """Take note that no attempt uses a lease."""
        books = self._books(lease.shape)
        lease.was_idle = False
        if agent.leaving or agent.is_closing or self._pool.is_closing or lease.is_retiring:
            self._pool.release_shaped(agent, lease)
        else:
            books.free[lease] = agent
        self._serve(books)

    def on_leaving(self, agent: RemoteAgent) -> None:
        """Give back the free leases of an agent that takes nothing more."""
        for lease in self.on_lost(agent):
            self._pool.release_shaped(agent, lease)

    def on_lost(self, agent: RemoteAgent) -> list[ShapedLease]:
        """Forget the free leases of an agent, and return them."""
        lost = []
        for books in list(self._shapes.values()):
            of_agent = [lease for lease, holder in books.free.items() if holder is agent]
            for lease in of_agent:
                del books.free[lease]
            self._balance(books)
            lost += of_agent
        return lost

    def release_idle(self) -> None:
        """Give back the leases that were free at the last call, too."""
        for books in list(self._shapes.values()):
            self._release_spare(books, [lease for lease in books.free if lease.was_idle])
            for lease in books.free:
                lease.was_idle = True

    def release_retiring(self, agent: RemoteAgent) -> None:
        """Give back the free leases of an agent that are to retire and are kept for nobody."""
        for books in list(self._shapes.values()):
            of_agent = [lease for lease, holder in books.free.items() if holder is agent]
            self._release_spare(books, [lease for lease in of_agent if lease.is_retiring])

    def _release_spare(self, books: _Books, leases: list[ShapedLease]) -> None:
        """Give back those of the free leases that are kept for nobody."""
        for lease in leases[: max(0, len(books.free) - len(books.reserved))]:
            self._pool.release_shaped(books.free.pop(lease), lease)
        self._balance(books)

    def starving(self) -> dict[Shape, Starving]:
        """Return the shapes that have no lease, and jobs that wait for one which some node could hold."""
        return {
            shape: Starving(books.lacking, books.nodes)
            for shape, books in self._shapes.items()
            if books.lacking and books.nodes and not books.is_hopeless and not self._pool.count_leases(shape)
        }

    def ask_again(self) -> None:
        """Ask for what may be asked for now, and take back what may not."""
        for books in list(self._shapes.values()):
            self._balance(books)

    # --- where no lease is to be expected ---

    def on_unplaceable(self, shape: Shape, why: str, *, is_final: bool) -> None:
        """Take note that no node of the cluster could ever hold a lease of this shape: its jobs fail after a while."""
        books = self._shapes.get(shape)
        if books is None or books.is_hopeless:
            return
        if books.why != why:
            books.why = why
            until = "" if is_final else ": it waits for a node that can"
            if until and self._node_timeout is not None:
                until += f", and fails after {self._node_timeout:g} s (cluster.node_timeout)"
            logger.warning("no job with resources %s can start: %s%s", shape_text(shape), why, until)
        if is_final:
            self._give_up(books)
        else:
            self._give_up_later(books)

    def on_failure(self, shape: Shape, why: str) -> None:
        """Take note why a node could not hold a lease that it was given: the jobs of this shape fail after a while."""
        if (books := self._shapes.get(shape)) is not None:
            books.failure = why
            self._give_up_later(books)

    def _give_up_later(self, books: _Books) -> None:
        if books.timer is None and self._node_timeout is not None:
            supervisor = self._pool.supervisor
            books.timer = supervisor.call_at(supervisor.now() + self._node_timeout, lambda: self._on_timeout(books))

    def _on_timeout(self, books: _Books) -> None:
        books.cancel_timer()
        if not self._pool.count_leases(books.shape):
            self._give_up(books)

    def on_placeable(self, shape: Shape, nodes: Collection[str] = ()) -> None:
        """Take note that a node could hold a lease of this shape. `nodes`: their names, as far as they are known."""
        books = self._shapes.get(shape)
        if books is not None:
            books.nodes = nodes or books.nodes
            books.why = ""
            if not books.failure:
                books.cancel_timer()

    def refuse_all(self, why: str) -> None:
        """Let what waits for a lease fail: no further try can help."""
        for books in list(self._shapes.values()):
            books.requested = 0
            if not self._pool.count_leases(books.shape):
                books.why = why
                self._give_up(books)

    def _give_up(self, books: _Books) -> None:
        """Let all that waits fail: what waits in the queue does so when it is started, at the end of this turn."""
        books.cancel_timer()
        books.is_hopeless = True
        self._serve(books)

    def close(self) -> None:
        """Ask for nothing any more."""
        for books in list(self._shapes.values()):
            books.demand = 0
            self._balance(books)

    # --- inside ---

    def _books(self, shape: Shape) -> _Books:
        return self._shapes.setdefault(shape, _Books(shape))

    def _serve(self, books: _Books) -> None:
        """Start what waits, as far as there are leases for it."""
        while books.waiting and (books.free or books.is_hopeless):
            assignment = books.waiting.popleft()
            self._pool.busy -= 1
            if not books.free:
                _refuse(self._pool, assignment, books.why or books.failure)
                continue
            lease = books.best_for(assignment)
            if _send(self._pool, books.free[lease], assignment, lease):
                del books.free[lease]
        self._balance(books)

    def _balance(self, books: _Books) -> None:
        """Ask for as many leases as are wanted and not there."""
        wanted = 0 if books.is_hopeless or not self._pool.may_ask_for(books.shape) else books.lacking
        more, books.requested = wanted - books.requested, wanted
        if more and not (self._pool.is_closing and more > 0):
            self._pool.ask_for(more, books.shape)
        if not books.free and not books.lacking:
            books.cancel_timer()
            self._shapes.pop(books.shape, None)


class _Books:
    """What is known of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.demand = 0
        """Leases that are wanted for jobs in the queue."""
        self.requested = 0
        """Leases that were asked for and not granted yet."""
        self.free: dict[ShapedLease, RemoteAgent] = {}
        """Leases that no attempt uses, with their agents."""
        self.reserved: set[Job] = set()
        """Jobs for which one of the free leases is kept."""
        self.waiting: deque[Assignment] = deque()
        """Attempts that hold a slot of the executor, whose lease was lost before they were sent."""
        self.nodes: Collection[str] = ()
        """The names of the nodes that could hold such a lease, as far as they are known."""
        self.why = ""
        """Why no node can hold such a lease."""
        self.failure = ""
        """Why a node could not hold one that it was given lately."""
        self.is_hopeless = False
        """Whether all that waits fails, until nothing does."""
        self.timer: Timer | None = None

    @property
    def lacking(self) -> int:
        """Number of leases that are wanted and not there."""
        return max(0, self.demand + len(self.waiting) + len(self.reserved) - len(self.free))

    def best_for(self, assignment: Assignment) -> ShapedLease:
        """Return a free lease: on the node that has the attempt's data, if there is one."""
        near = assignment.payload.near
        return next((lease for lease, agent in self.free.items() if agent.node == near), next(iter(self.free)))

    def cancel_timer(self) -> None:
        """Do not give up."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


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
        self._ask_others_at = 0.0
        """When the engine may be asked again what others wait for; never while an answer is awaited."""
        self._wanted: Counter[str] = Counter()
        """Slots that others waited for at the last look, by node."""
        self._retire_for_own = False
        """Whether leases are to go back for jobs of the pool alone."""
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
        if now >= self._ask_others_at and any(
            self._is_due(since) for agent in self._pool.agents for since in _ages(agent)
        ):
            self._ask_others_at = math.inf
            self._pool.source.look_for_others()
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

    def on_others(self, waiting: Mapping[str, int], took: float) -> None:
        """Let leases retire for others.

        `waiting`: how many slots they wait for, by the name of the node. `took`: seconds until the engine had said so.
        """
        self._ask_others_at = self._supervisor.now() + min(took / MAX_QUESTION_SHARE, MAX_QUESTION_INTERVAL)
        wanted = Counter(waiting)
        for shape, starving in self._starving().items():
            able = [each for each in self._pool.agents if starving.nodes is None or each.node in starving.nodes]
            able.sort(key=lambda agent: min(_ages(agent), default=math.inf))
            for agent in able[: starving.leases]:
                wanted[agent.node] += max(1, math.ceil(dict(shape).get(CPU, UNITS) / UNITS))
        # What waits for a moment only is about to get its place.
        lasting, self._wanted = wanted & self._wanted, wanted
        self._retire_for_own = lasting.total() > 0 and not any(waiting.values())
        self._retire(lasting)

    def on_granted(self) -> None:
        """Let leases stay that were to go back for jobs of the pool, if those have a lease by now."""
        if self._retire_for_own and not self._starving():
            self._retire_for_own = False
            self._retire(Counter())

    def _retire(self, counts: Counter[str]) -> None:
        """Let so many leases of each node go back when their attempts end, and no others."""
        for agent in list(self._pool.agents):
            count = counts[agent.node]
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
        self._queue.request(withdraws=True)
        self._shapes.ask_again()


def _ages(agent: RemoteAgent) -> Iterable[float]:
    """Return since when the pool has each lease of an agent."""
    return (*agent.leases.values(), *(lease.since for lease in agent.shaped))
