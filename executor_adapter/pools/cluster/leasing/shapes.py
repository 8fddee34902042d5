"""The leases of a pool for jobs with `resources`: how many of each shape are wanted, asked for, free and kept."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.job import Job, Shape, shape_of, shape_text
from executor_adapter.pools.base import Assignment, Timer
from executor_adapter.pools.cluster.leasing.owner import LeasesOwner
from executor_adapter.pools.cluster.leasing.shaped_lease import ShapedLease, Starving
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from executor_adapter.pools.transport.envelope import crashed

logger = logging.getLogger("executor_adapter.cluster")


class ShapedLeases:
    """Keeps the books of all shapes. `node_timeout`: seconds for which jobs wait while no node could ever run them."""

    def __init__(self, pool: LeasesOwner, node_timeout: float | None) -> None:
        self._pool = pool
        self._node_timeout = node_timeout
        self._shapes: dict[Shape, _Books] = {}
        self._is_closing = False

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
        books.is_hopeless = False
        self.on_placeable(lease.shape)
        self.on_free(agent, lease)

    def on_free(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        """Take note that no attempt uses a lease."""
        books = self._books(lease.shape)
        lease.was_idle = False
        if agent.leaving or agent.is_closing or self._is_closing or lease.is_retiring:
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
            spare = len(books.free) - len(books.reserved)
            for lease in [lease for lease in books.free if lease.was_idle][: max(0, spare)]:
                self._pool.release_shaped(books.free.pop(lease), lease)
            for lease in books.free:
                lease.was_idle = True
            self._balance(books)

    def release_retiring(self, agent: RemoteAgent) -> None:
        """Give back the free leases of an agent that are to retire and are kept for nobody."""
        for books in list(self._shapes.values()):
            retiring = [lease for lease, holder in books.free.items() if holder is agent and lease.is_retiring]
            for lease in retiring[: max(0, len(books.free) - len(books.reserved))]:
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
        elif books.timer is None and self._node_timeout is not None:
            supervisor = self._pool.supervisor
            books.timer = supervisor.call_at(supervisor.now() + self._node_timeout, lambda: self._give_up(books))

    def on_placeable(self, shape: Shape, nodes: Collection[str] = ()) -> None:
        """Take note that a node could hold a lease of this shape. `nodes`: their names, as far as they are known."""
        books = self._shapes.get(shape)
        if books is not None:
            books.nodes = nodes or books.nodes
            books.why = ""
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
        self._is_closing = True
        for books in list(self._shapes.values()):
            books.demand = 0
            self._balance(books)

    # --- inside ---

    def _books(self, shape: Shape) -> _Books:
        books = self._shapes.get(shape)
        if books is None:
            books = self._shapes[shape] = _Books(shape)
        return books

    def _serve(self, books: _Books) -> None:
        """Start what waits, as far as there are leases for it."""
        while books.waiting and (books.free or books.is_hopeless):
            assignment = books.waiting.popleft()
            self._pool.busy -= 1
            try:
                if not books.free:
                    raise WorkerUnavailableError(f"no node of pool={self._pool.name!r} can run the job: {books.why}")
                lease = books.best_for(assignment)
                self._pool.give(books.free[lease], assignment, lease)
                del books.free[lease]
            except Exception as error:
                failure = error
                if not isinstance(error, WorkerUnavailableError):
                    logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
                    failure = WorkerUnavailableError(f"the attempt cannot be sent to a node: {error}")
                self._pool.supervisor.ended(assignment, crashed(failure))
        self._balance(books)

    def _balance(self, books: _Books) -> None:
        """Ask for as many leases as are wanted and not there."""
        wanted = 0 if books.is_hopeless or not self._pool.may_ask_for(books.shape) else books.lacking
        more, books.requested = wanted - books.requested, wanted
        if more and not (self._is_closing and more > 0):
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
