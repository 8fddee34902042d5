"""Chooses the agent that gets an attempt, and keeps the plain attempts that wait for a slot of one.

An agent that has the attempt's data comes first, else the emptiest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import Assignment, Timer
from executor_adapter.pools.cluster.leasing.owner import LeasesOwner
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from executor_adapter.pools.transport.envelope import crashed

logger = logging.getLogger("executor_adapter.cluster")

LACK_SECONDS = 10.0
"""Seconds without a single node after which it is said what is waited for."""
_MAX_KNOWN_FAILURES = 100
"""Failures of which another one with the same words is no news."""


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
        self.withdraw()
        return True

    def serve(self) -> None:
        """Send what waits, as far as there are slots for it."""
        while self.waiting and (agent := agent_with_free_slot(self._pool.agents, self.waiting[0])) is not None:
            assignment = self.waiting.popleft()
            self._pool.busy -= 1
            try:
                self._pool.give(agent, assignment)
            except Exception as error:
                logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
                failure = WorkerUnavailableError(f"the attempt cannot be sent to a node: {error}")
                self._pool.supervisor.ended(assignment, crashed(failure))
        self._watch_starving()

    @property
    def _wanted(self) -> int:
        may_ask = self._pool.may_ask_for(())
        return max(0, min(len(self.waiting), self._pool.max_workers - self._pool.slots)) if may_ask else 0

    def request(self) -> None:
        """Ask for more leases if more are wanted."""
        more = self._wanted - self._requested
        if more > 0 and not self._pool.is_closing:
            self._requested += more
            self._pool.ask_for(more, ())
        self._watch_starving()

    def withdraw(self) -> None:
        """Ask for fewer leases if fewer are wanted."""
        spare = self._requested - self._wanted
        if spare > 0:
            self._requested -= spare
            self._pool.ask_for(-spare, ())
        self._watch_starving()

    def ask_again(self) -> None:
        """Ask for as many leases as are wanted and may be asked for now."""
        self.withdraw()
        self.request()

    def on_granted(self) -> None:
        """Take note of a new slot."""
        self._requested = max(0, self._requested - 1)
        self._failure = self._lack = ""

    def note_failure(self, why: str) -> bool:
        """Remember why no lease can be had. Return whether that is news: several nodes may fail in turn."""
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
        self.withdraw()
        self._end_starving()

    def on_nodes_sought(self, nodes: Collection[str], why: str) -> None:
        """Say what is waited for, where there is no node at all and no failure was told."""
        lack = why or (f"{len(nodes)} could have it, and none gives it: others may use all" if nodes else self._lack)
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
            self._pool.explain_lack()

    def _end_starving(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _fail(self) -> None:
        self._end_starving()
        waiting, self.waiting = self.waiting, deque()
        why = self._failure or self._lack or "no node has answered yet"
        self._pool.busy -= len(waiting)
        self.withdraw()
        for assignment in waiting:
            error = WorkerUnavailableError(f"no node of pool={self._pool.name!r} can run the job: {why}")
            self._pool.supervisor.ended(assignment, crashed(error))


def agent_with_free_slot(agents: Sequence[RemoteAgent], assignment: Assignment) -> RemoteAgent | None:
    """Return an agent that can start the attempt now."""
    near = assignment.payload.near
    free = [agent for agent in agents if agent.free]
    return max(free, key=lambda agent: (agent.node == near, agent.free / agent.slots), default=None)


def agent_with_room(agents: Sequence[RemoteAgent], assignment: Assignment) -> RemoteAgent | None:
    """Return an agent that the attempt can be queued at; it has no room where none has."""
    near = assignment.payload.near
    rooms = {agent: agent.room_behind for agent in agents}
    return max(agents, key=lambda agent: (agent.node == near and rooms[agent] > 0, rooms[agent]), default=None)
