"""The books of a pool of leases: what attempts wait for, which agent gets one, what is asked for, and what goes back.

`ShapeBooks` keeps one book a shape; a plain slot is the shape (). `LeaseWatch` gives leases back to their engine.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from operator import methodcaller
from typing import ClassVar, NamedTuple, Protocol

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.job import CPU, UNITS, Job, Shape, shape_of, shape_text
from executor_adapter.pools.base import Assignment, Timer
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.remote_agent import AgentOwner, Lease, RemoteAgent
from executor_adapter.pools.transport.envelope import crashed

logger = logging.getLogger("executor_adapter.cluster")

LACK_SECONDS = 10.0
"""Seconds without a single slot after which it is said what is waited for."""
_MAX_KNOWN_FAILURES = 100
"""Failures of which another one with the same words is no news."""
_COMPARED = 4
"""Agents that are compared for an attempt: one of those that were chosen longest ago has room, unless most are full."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks at what the pool holds, and at what it was not granted yet."""
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

    def give(self, agent: RemoteAgent, assignment: Assignment, shape: Shape) -> None:
        """Send an attempt to an agent that has a free lease of its shape."""

    def release(self, agent: RemoteAgent, shape: Shape) -> None:
        """Give back a lease of an agent that no attempt uses."""

    def close_unused(self, agent: RemoteAgent) -> None:
        """Let an agent without a lease end, unless leases have just gone back for others: some may follow soon."""


def choose_agent(
    agents: list[RemoteAgent], assignment: Assignment, room: Callable[[RemoteAgent], int], shape: Shape
) -> RemoteAgent | None:
    """Return an agent that has `room` for the attempt on its leases of this shape, and put it behind the others.

    It is the one that has the attempt's data, if that has room; else that with the most room for each of its leases
    among the first ones. One whose node is known to lack a module of the function is chosen only where all do.
    """
    near, number = assignment.payload.near, assignment.payload.function.number
    chosen: RemoteAgent | None = None
    most = 0.0
    for place, agent in enumerate(agents):
        if place >= _COMPARED and chosen is not None and near in (None, chosen.node):
            break
        if (has := room(agent)) > 0 and number not in agent.lacking:
            share = math.inf if agent.node == near else has / agent.count(shape)
            if share > most:
                chosen, most = agent, share
    if chosen is None and all(number in agent.lacking for agent in agents if agent.count(shape)):
        chosen = next((agent for agent in agents if room(agent) > 0), None)
    if chosen is not None:
        agents.remove(chosen)
        agents.append(chosen)
    return chosen


class Starving(NamedTuple):
    """A shape that has no lease, and jobs that wait for one."""

    leases: int
    """How many are wanted."""
    nodes: Collection[str]
    """The names of the nodes that could hold one."""


class _Book:
    """What is known of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.demand = 0
        """Leases that are wanted for jobs in the queue. Plain jobs do not wait there for one."""
        self.reserved: set[Job] = set()
        """Jobs for which one of the free leases is kept."""
        self.waiting: deque[Assignment] = deque()
        """Attempts that hold a slot of the executor, and wait for a lease."""
        self.nodes: Collection[str] = ()
        """The names of the nodes that could hold such a lease, as far as they are known."""
        self.why = ""
        """What is waited for, such as a node that could hold one."""
        self.failure = ""
        """Why a node could not hold one that it was given lately."""
        self.is_hopeless = False
        """Whether all that waits fails, until nothing does."""
        self.since: float | None = None
        """Since when attempts wait and there is no lease at all; None where that is not so."""
        self.able_at = 0.0
        """When it was known last that a node could hold one."""

    @property
    def wanted(self) -> int:
        """Number of leases that are wanted beside those in use."""
        return self.demand + len(self.waiting) + len(self.reserved)


class ShapeBooks:
    """Keeps the books of all shapes. `node_timeout`: seconds for which jobs wait while no node could run them."""

    def __init__(self, pool: LeasesOwner, node_timeout: float | None) -> None:
        self._pool = pool
        self._node_timeout = node_timeout
        self._books: dict[Shape, _Book] = {(): _Book(())}
        """That of plain slots, and those of the shapes that are wanted."""
        self.asked: dict[int, Shape] = {}
        """The leases that were asked for and not granted yet, the oldest first, with their shapes."""
        self._numbers = itertools.count(1)
        self.rests: dict[Shape, float] = {}
        """The shapes that are not asked for, and until when: leases of theirs went back for others."""
        self._known_failures: deque[str] = deque(maxlen=_MAX_KNOWN_FAILURES)
        self._will_look = False
        """Whether there will be another look at what was asked for."""

    # --- what the supervisor asks ---

    def has_lease(self, shape: Shape) -> bool:
        """Return whether a free lease is kept for nobody, or none is to be expected."""
        book = self._books.get(shape)
        return (book is not None and book.is_hopeless) or self.spare(shape) > 0

    def reserve(self, job: Job, shape: Shape) -> None:
        """Keep a free lease for the next attempt of a job."""
        self._book(shape).reserved.add(job)

    def unreserve(self, job: Job) -> None:
        """Keep no lease for a job any more."""
        book = self._books.get(shape_of(job.live.resources))
        if book is not None and job in book.reserved:
            book.reserved.remove(job)
            self._balance(book)

    def set_demand(self, shape: Shape, count: int) -> None:
        """Let there be so many leases beside those that are kept or in use."""
        book = self._book(shape)
        book.demand = count
        self._balance(book)

    def start(self, assignment: Assignment) -> None:
        """Run an attempt on a lease of its shape, or keep it until there is one."""
        book = self._book(shape_of(assignment.job.live.resources))
        book.reserved.discard(assignment.job)
        self._pool.busy += 1
        book.waiting.append(assignment)
        self._serve(book)

    def take(self, assignment: Assignment) -> bool:
        """Take back an attempt that waits for a lease; return False where it does not."""
        book = self._books.get(shape_of(assignment.job.live.resources))
        if book is None or assignment not in book.waiting:
            return False
        book.waiting.remove(assignment)
        self._pool.busy -= 1
        self._balance(book)
        return True

    def waiting(self) -> list[Assignment]:
        """Return the attempts that wait for a lease."""
        return [assignment for book in self._books.values() for assignment in book.waiting]

    # --- what becomes of leases ---

    def spare(self, shape: Shape) -> int:
        """Return the number of free leases that are kept for nobody."""
        book = self._books.get(shape)
        return self._free(shape) - (0 if book is None else len(book.reserved))

    def surplus(self, shape: Shape) -> int:
        """Return the number of free leases that are kept for nobody, and that no job in the queue waits for."""
        book = self._books.get(shape)
        return self.spare(shape) - (0 if book is None else book.demand)

    def count(self, shape: Shape) -> int:
        """Return the number of leases of a shape, used or free."""
        return sum(agent.count(shape) for agent in self._pool.agents)

    def on_granted(self, lease: int) -> Shape | None:
        """Take note of a new lease, and return its shape; None where it is not wanted any more."""
        shape = self.asked.pop(lease, None)
        if shape is not None and (book := self._books.get(shape)) is not None:
            book.is_hopeless, book.failure, book.why = False, "", ""
        return shape

    def serve(self, shape: Shape) -> None:
        """Start what waits, as far as there are leases for it."""
        if (book := self._books.get(shape)) is not None and book.wanted:
            self._serve(book)

    def serve_all(self) -> None:
        """Do so for all shapes."""
        for book in list(self._books.values()):
            self._serve(book)

    def ask_again(self) -> None:
        """Ask for what is wanted and may be asked for now, and take back all else."""
        for book in list(self._books.values()):
            self._balance(book)

    @property
    def are_awaited(self) -> bool:
        """Whether attempts wait, or leases that were asked for, which some node could hold."""
        return any(book.waiting or (self._asked_of(book.shape) and not book.why) for book in self._books.values())

    def starving(self) -> dict[Shape, Starving]:
        """Return the shapes that have no lease, and are asked for one which some node could hold."""
        return {
            shape: Starving(self._lacking(book), book.nodes if shape else [each.node for each in self._pool.agents])
            for shape, book in self._books.items()
            if self._lacking(book) > 0 and not self.count(shape) and (book.nodes or not shape)
        }

    # --- where no lease is to be expected ---

    def on_nodes_sought(self, shape: Shape, nodes: Collection[str], why: str, is_final: bool = False) -> None:
        """Take note which nodes could hold a lease, and what is waited for; nothing, if both are empty.

        Where no node could, what waits fails after a while, and at once if that `is_final`: no further node will join.
        """
        book = self._books.get(shape)
        if book is None or book.is_hopeless or not (nodes or why):
            return
        is_news = bool(why) and why != book.why and not book.failure
        book.nodes, book.why = nodes or book.nodes, why
        if nodes and not book.failure:  # It is its turn as soon as others end.
            book.able_at = self._pool.supervisor.now()
        if is_news and self._is_starving(book):
            needs, until = f" with resources {shape_text(shape)}" if shape else "", ""
            if shape and not is_final and self._node_timeout is not None:
                until = f": it fails after {self._node_timeout:g} s (cluster.node_timeout)"
            logger.warning("no job%s of pool=%r can start yet: %s%s", needs, self._pool.name, why, until)
        if is_final and shape and not nodes:
            self._give_up(book)

    def on_failure(self, shape: Shape, why: str) -> None:
        """Take note why a lease cannot be had now, which is logged once: several nodes may fail in turn."""
        if why not in self._known_failures:
            self._known_failures.append(why)
            logger.warning("%s", why)
        if (book := self._books.get(shape)) is not None:
            book.failure = why

    def refuse_all(self, why: str) -> None:
        """Let what waits for a lease fail, unless its shape has some: no further try can help."""
        logger.error("%s", why)
        self._known_failures.append(why)
        for lease in list(self.asked):
            self._withdraw(lease)
        for book in list(self._books.values()):
            book.failure = why
            if not self.count(book.shape):
                self._give_up(book)

    def _look(self) -> None:
        """Find out which nodes could hold what was asked for, and give up what none could for too long."""
        now = self._pool.supervisor.now()
        shapes = set(self.asked.values()) - {()}
        for book in [book for book in self._books.values() if book.since is not None]:
            lacks_for = now - max(book.since or 0.0, book.able_at)
            if self._node_timeout is not None and lacks_for >= self._node_timeout:
                self._give_up(book)
            elif not book.shape and lacks_for >= LACK_SECONDS:
                shapes.add(())
        self._will_look = bool(self.asked)
        if self._will_look:
            self._pool.source.look_for_nodes(shapes)
            self._pool.supervisor.call_at(now + LOOK_INTERVAL, self._look)

    def _give_up(self, book: _Book) -> None:
        """Let all that waits fail: what waits in the queue does so when it is started, at the end of this turn."""
        book.is_hopeless = True
        self._serve(book)

    def _is_starving(self, book: _Book) -> bool:
        return book.wanted > 0 and not self.count(book.shape) and not self._pool.is_closing

    # --- inside ---

    def _book(self, shape: Shape) -> _Book:
        return self._books.setdefault(shape, _Book(shape))

    def _free(self, shape: Shape) -> int:
        return sum(agent.free(shape) for agent in self._pool.agents)

    def _serve(self, book: _Book) -> None:
        while book.waiting:
            agent = choose_agent(self._pool.agents, book.waiting[0], methodcaller("free", book.shape), book.shape)
            if agent is None and not book.is_hopeless:
                break
            assignment = book.waiting.popleft()
            self._pool.busy -= 1
            if agent is not None:
                self._send(agent, assignment, book.shape)
            else:
                why = book.failure or book.why or "no node has answered yet"
                error = WorkerUnavailableError(f"no node of pool={self._pool.name!r} can run the job: {why}")
                self._pool.supervisor.ended(assignment, crashed(error))
        # Plain attempts follow one another: what one of them has asked for is wanted again a moment later.
        self._balance(book, keeps=not (book.shape or book.is_hopeless))

    def _send(self, agent: RemoteAgent, assignment: Assignment, shape: Shape) -> None:
        try:
            self._pool.give(agent, assignment, shape)
        except Exception as error:
            logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
            failure = WorkerUnavailableError(f"the attempt cannot be sent to a node: {error}")
            self._pool.supervisor.ended(assignment, crashed(failure))

    def _balance(self, book: _Book, *, keeps: bool = False) -> None:
        """Ask for as many leases as are wanted and not there; where it `keeps`, for no fewer than before."""
        asked = self._asked_of(book.shape)
        lacking = max(0, self._lacking(book), len(asked) if keeps else 0)
        for lease in asked[lacking:]:
            self._withdraw(lease)
        self._ask(lacking - len(asked), book.shape)
        if not self._is_starving(book):
            book.since = None
        elif book.since is None:
            book.since = self._pool.supervisor.now()
        if not book.wanted:
            book.is_hopeless = False
            if book.shape:
                self._books.pop(book.shape, None)

    def ask_anew(self, shape: Shape) -> None:
        """Ask for the leases of a shape after those of other shapes that were asked for since."""
        asked = self._asked_of(shape)
        for lease in asked:
            self._withdraw(lease)
        self._ask(len(asked), shape)

    def _asked_of(self, shape: Shape) -> list[int]:
        return [lease for lease, asked in self.asked.items() if asked == shape]

    def _ask(self, count: int, shape: Shape) -> None:
        leases = [next(self._numbers) for _ in range(count)]
        if leases:
            self.asked.update(dict.fromkeys(leases, shape))
            self._pool.source.ask(leases)
            if not self._will_look:
                self._will_look = True
                self._pool.supervisor.call_soon(self._look)

    def _withdraw(self, lease: int) -> None:
        del self.asked[lease]
        self._pool.source.withdraw(lease)

    def _lacking(self, book: _Book) -> int:
        if book.is_hopeless or self._pool.is_closing or book.shape in self.rests:
            return 0
        lacking = book.wanted - self._free(book.shape)
        return lacking if book.shape else min(lacking, self._pool.max_workers - self.count(()))


class LeaseWatch:
    """Gives back what was idle for `lease_idle`, or for a moment while anything of the pool waits for a lease.

    A lease that the pool has had for `max_grant` seconds goes back as soon as its attempt ends while others wait for
    its node: tasks of others by the engine's books, or jobs of the pool whose shape has no lease at all. As many go
    back as are waited for, and no lease of their shape is asked for while others wait, for `max_grant` seconds at most.
    """

    def __init__(self, pool: LeasesOwner, books: ShapeBooks, lease_idle: float, max_grant: float) -> None:
        self._pool, self._books = pool, books
        self._supervisor = pool.supervisor
        self._idle_interval = lease_idle / 2
        self._max_grant = max_grant
        self._timer: Timer | None = None
        self._looked_at = self._supervisor.now()
        self._ask_others_at = 0.0
        """When the engine may be asked again what others wait for; never while an answer is awaited."""
        self._wanted: Counter[str] = Counter()
        """Slots that others, and shapes of the pool without a lease, waited for at the last look, by node."""
        self._others: Counter[str] = Counter()
        """Those of others alone."""

    def begin(self) -> None:
        """Look from now on."""
        if self._timer is None:
            due = self._supervisor.now() + min(self._idle_interval, LOOK_INTERVAL)
            self._timer = self._supervisor.call_at(due, self._look)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._supervisor.now()
        is_awaited = self._books.are_awaited
        if now >= self._looked_at + (min(self._idle_interval, 1.0) if is_awaited else self._idle_interval):
            self._looked_at = now
            self._release_idle()
        if over := [shape for shape, until in self._books.rests.items() if until <= now]:
            for shape in over:
                del self._books.rests[shape]
            self._books.ask_again()
        leases = [lease for agent in self._pool.agents for lease in agent.leases]
        if now >= self._ask_others_at and (self._books.rests or any(map(self._is_due, leases))):
            self._ask_others_at = math.inf
            self._pool.source.look_for_others()
        if not self._books.rests and not is_awaited:
            for agent in list(self._pool.agents):
                self._pool.close_unused(agent)
        if self._books.rests or self._pool.agents:
            self.begin()

    def _release_idle(self) -> None:
        """Give back what was not used since the last look, and what no job in the queue waits for."""
        for agent in list(self._pool.agents):
            for shape, held in list(agent.held.items()):
                self._release(agent, shape, min(len(held.leases) - held.most, self._books.surplus(shape)))
                held.most = held.used

    def _release(self, agent: RemoteAgent, shape: Shape, count: int) -> int:
        """Give back up to so many leases that no attempt uses and that are kept for nobody; return how many."""
        count = max(0, min(count, agent.held[shape].unused, self._books.spare(shape)))
        for _ in range(count):
            self._pool.release(agent, shape)
        return count

    # --- sharing ---

    def _is_due(self, lease: Lease) -> bool:
        return self._supervisor.now() >= lease.since + self._max_grant

    def on_others(self, waiting: Mapping[str, int], took: float) -> None:
        """Let leases retire for others.

        `waiting`: how many slots they wait for, by the name of the node. `took`: seconds until the engine had said so.
        """
        self._ask_others_at = self._supervisor.now() + min(took / MAX_QUESTION_SHARE, MAX_QUESTION_INTERVAL)
        self._others, wanted = Counter(waiting), Counter(waiting)
        for shape, starving in self._books.starving().items():
            able = [each for each in self._pool.agents if each.node in starving.nodes]
            able.sort(key=lambda agent: min((lease.since for lease in agent.leases), default=math.inf))
            for agent in able[: starving.leases]:
                wanted[agent.node] += max(1, math.ceil(dict(shape).get(CPU, UNITS) / UNITS))
        # What waits for a moment only is about to get its place.
        lasting, lately, self._wanted = wanted & self._wanted, wanted | self._wanted, wanted
        if self._books.rests and not lately:
            self._books.rests.clear()
            self._books.ask_again()
        for agent in list(self._pool.agents):
            count = lasting[agent.node]
            for shape, held in agent.held.items():  # So many plain leases, or all of another shape.
                due = sum(map(self._is_due, held.leases))
                held.retiring = due if shape and count else min(due, count)
            self.release_retiring(agent)

    def release_retiring(self, agent: RemoteAgent) -> None:
        """Give back what an agent is to give back and does not use, while its node is still waited for."""
        for shape, held in list(agent.held.items()):
            starving = self._books.starving().values()  # Shapes of the pool that have no lease now.
            is_awaited = self._others[agent.node] > 0 or any(agent.node in each.nodes for each in starving)
            if is_awaited and held.retiring and held.unused and self._books.spare(shape) > 0:
                self._rest(shape)
                held.retiring -= self._release(agent, shape, held.retiring)

    def _rest(self, shape: Shape) -> None:
        """Ask for no lease of a shape: one is about to go back for the sake of others, who are to get its place."""
        if shape not in self._books.rests:
            self._books.rests[shape] = self._supervisor.now() + self._max_grant
            self._books.ask_again()
