"""The pool of a cluster: gives attempts to agents on other machines, on as many slots as it has leases."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor, Recall, Timer, WorkerPool
from executor_adapter.pools.cluster import portable
from executor_adapter.pools.cluster.hello import refusal
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.link import LinkEnd
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from executor_adapter.pools.transport.decoder import Decoder
from executor_adapter.pools.transport.payload import Initializer, Payload, encode_initializer, make_payload
from executor_adapter.pools.transport.reports import DecodingSink, ResultSink
from executor_adapter.worker import lease_time

if TYPE_CHECKING:
    from executor_adapter.job import Job

logger = logging.getLogger("executor_adapter.cluster")

CLOSE_TIMEOUT = 5.0
"""Seconds that agents may take to end when the pool is closed."""


MakeSource = Callable[["RemotePool"], LeaseSource]


class RemotePool(WorkerPool):
    """Runs attempts on other machines; see `pools.cluster`.

    `make_source`: makes the source of leases. `lost_after`: seconds without contact after which a node's attempts are
    killed. `lease_idle`: seconds after which an unused lease is given back. `node_timeout`: seconds for which an
    attempt waits while there is no node at all; None for any time. The others are as in the process pool of one
    machine, and apply on each node.
    """

    can_limit_memory: ClassVar[bool] = True
    can_stop_soft: ClassVar[bool] = True
    is_here: ClassVar[bool] = False

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        make_source: MakeSource,
        *,
        lost_after: float = 15.0,
        lease_idle: float = 10.0,
        node_timeout: float | None = 60.0,
        initializer: Initializer | bytes | None = None,
        **worker_options: Any,
    ) -> None:
        super().__init__(supervisor, max_workers)
        self._decoder = Decoder(supervisor)
        self.sink: ResultSink = DecodingSink(supervisor, self._decoder)
        self.agents: list[RemoteAgent] = []
        """The agents that are connected, ready or not."""
        self._setup: dict[str, Any] = {
            "lost_after": lost_after,
            "log_level": min(logging.INFO, logging.getLogger().level or logging.INFO),
            "options": {"initializer": encode_initializer(initializer), **worker_options},
        }
        self._lost_after = lost_after
        self._lease_idle = lease_idle
        self._node_timeout = node_timeout
        self._waiting: deque[Assignment] = deque()
        """Attempts that hold a slot of the executor and wait for a lease."""
        self._requested = 0
        """Leases that were asked for and not granted yet."""
        self._store_lease_until = math.inf
        self._why_none = "no node has answered yet"
        self._idle_timer: Timer | None = None
        self._starved: Timer | None = None
        self._close_timer: Timer | None = None
        self._on_closed: Callable[[], None] | None = None
        self._source = make_source(self)

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        payload = make_payload(job)
        portable.pack(payload.function, job.function)
        return payload

    @property
    def abandoned(self) -> int:
        """Results that could not be unpickled in time."""
        return self._decoder.abandoned

    @property
    def slots(self) -> int:
        """Number of attempts that its leases allow; a node that is about to go counts with what runs there."""
        return sum(len(agent.live) if agent.leaving else agent.slots for agent in self.agents)

    def set_lease(self, until: float) -> None:
        self._store_lease_until = until

    def lease_seconds(self) -> float:
        return self._store_lease_until - lease_time()

    # --- assigning ---

    def start(self, assignment: Assignment) -> None:
        agent = self._agent_with_free_slot()
        if agent is not None:
            self._give(agent, assignment)
            return
        self.busy += 1
        self._waiting.append(assignment)
        self._request_leases()
        self._watch_starving()

    def _agent_with_free_slot(self) -> RemoteAgent | None:
        free = [agent for agent in self.agents if agent.free]
        return max(free, key=lambda agent: agent.free / agent.slots, default=None)

    def _give(self, agent: RemoteAgent, assignment: Assignment) -> None:
        agent.give(assignment)
        self._count(agent)

    def queue_behind(self, assignment: Assignment) -> bool:
        agent = max(self.agents, key=lambda agent: agent.room_behind, default=None)
        if assignment.memory_limit is not None or agent is None or agent.room_behind <= 0:
            return False
        self._give(agent, assignment)
        return True

    def hand_back_queued(self, before: float) -> bool:
        return sum(agent.give_back_if_stuck(before) for agent in self.agents) > 0

    def unstarted(self) -> list[Assignment]:
        given = (each for agent in self.agents for each in agent.live.values())
        return [*self._waiting, *(each for each in given if each.started_at is None)]

    def flush(self) -> None:
        for agent in list(self.agents):
            agent.link.flush()

    def _count(self, agent: RemoteAgent) -> None:
        """Count the slots that the agent's attempts hold: those that are queued behind others hold none."""
        busy = min(len(agent.live), max(agent.slots, 1))
        self.busy += busy - agent.busy
        agent.busy = busy

    def on_room(self, agent: RemoteAgent) -> None:
        self._count(agent)
        self._release_drained(agent)
        if self._waiting:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._waiting and (agent := self._agent_with_free_slot()) is not None:
            assignment = self._waiting.popleft()
            self.busy -= 1
            try:
                self._give(agent, assignment)
            except Exception as error:
                logger.exception("a pool cannot start a job", extra={"job_id": assignment.job.job_id})
                failure = WorkerUnavailableError(f"the attempt cannot be sent to a node: {error}")
                self.supervisor.ended(assignment, Ending.CRASHED, error=failure)
        self._watch_starving()

    # --- taking back and stopping ---

    def _take_waiting(self, assignment: Assignment) -> bool:
        if assignment not in self._waiting:
            return False
        self._waiting.remove(assignment)
        self.busy -= 1
        self._withdraw_leases()
        self._watch_starving()
        return True

    def recall(self, assignment: Assignment) -> Recall:
        if assignment.worker is None:
            if not self._take_waiting(assignment):
                return Recall.STARTED
        elif assignment.started_at is not None:
            return Recall.STARTED
        else:
            agent, seq = assignment.worker
            if not agent.recall(assignment, seq):
                return Recall.ASKED
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.stop(seq, grace)
        elif self._take_waiting(assignment):
            self.supervisor.ended(assignment, Ending.STOPPED)
        else:
            self._decoder.stop(assignment, grace)

    def interrupt(self, assignment: Assignment) -> None:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.interrupt(seq)

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        for agent in self.agents:
            while self.slots > max_workers and agent.free:
                self._release(agent)
        self._withdraw_leases()
        self._request_leases()

    # --- leases (LeaseHolder) ---

    def _request_leases(self) -> None:
        needed = min(len(self._waiting), self.max_workers - self.slots) - self._requested
        if needed > 0 and self._on_closed is None:
            self._requested += needed
            self._source.request(needed)

    def _withdraw_leases(self) -> None:
        spare = self._requested - max(0, min(len(self._waiting), self.max_workers - self.slots))
        if spare > 0:
            self._requested -= spare
            self._source.withdraw(spare)

    def connect(self, end: LinkEnd, node: str = "") -> RemoteAgent:
        agent = RemoteAgent(self, end, node, self._lost_after)
        self.agents.append(agent)
        return agent

    def granted(self, agent: RemoteAgent, lease: int) -> None:
        self._requested = max(0, self._requested - 1)
        agent.add_lease(lease)
        self._source.on_granted(agent, lease)
        if self.slots > self.max_workers or self._on_closed is not None:
            self._release(agent)
            return
        self._serve_waiting()
        self._look_for_idle()

    def on_lease(self, agent: RemoteAgent, lease: int) -> None:
        if self._source.accepts(lease) and not agent.is_closing:
            self.granted(agent, lease)
        else:  # It was withdrawn meanwhile, or its engine has granted it a second time.
            agent.return_lease(lease)

    def _release(self, agent: RemoteAgent) -> None:
        self._source.release(agent, agent.remove_lease())
        if not agent.slots and not self._source.keeps_idle:
            agent.close()

    def _look_for_idle(self) -> None:
        """Release what was not used since the last look, twice in `lease_idle`."""
        if self._idle_timer is None and not self._source.keeps_idle and self._on_closed is None:
            for agent in self.agents:
                agent.fewest_live = len(agent.live)
            self._idle_timer = self.supervisor.call_at(self.supervisor.now() + self._lease_idle / 2, self._release_idle)

    def _release_idle(self) -> None:
        self._idle_timer = None
        for agent in list(self.agents):
            for _ in range(min(agent.free, agent.slots - agent.fewest_live)):
                self._release(agent)
        if self.slots:
            self._look_for_idle()

    def not_granted(self, why: str) -> None:
        if why != self._why_none:
            logger.warning("%s", why)
        self._why_none = why

    def refused(self, why: str) -> None:
        self._why_none = why
        logger.error("%s", why)
        self._requested = 0
        if not self.slots:
            self._fail_waiting()

    def _watch_starving(self) -> None:
        """Limit the time for which attempts wait while there is no node."""
        starving = bool(self._waiting) and not self.slots
        if not starving and self._starved is not None:
            self._starved.cancel()
            self._starved = None
        elif starving and self._starved is None and self._node_timeout is not None:
            self._starved = self.supervisor.call_at(self.supervisor.now() + self._node_timeout, self._fail_waiting)

    def _fail_waiting(self) -> None:
        self._starved = None
        waiting, self._waiting = self._waiting, deque()
        self.busy -= len(waiting)
        self._withdraw_leases()
        for assignment in waiting:
            error = WorkerUnavailableError(f"no node of pool={self.name!r} can run the job: {self._why_none}")
            self.supervisor.ended(assignment, Ending.CRASHED, error=error)

    # --- agents (AgentOwner) ---

    def on_hello(self, agent: RemoteAgent, said: dict[str, Any]) -> None:
        if why := refusal(agent.node, said):
            agent.refuse(why)
            self.not_granted(why)
        else:
            agent.accept(self._setup)
            self._source.on_ready(agent)

    def on_leaving(self, agent: RemoteAgent) -> None:
        logger.info("node %s is about to leave: it gets no further jobs", agent.node)
        self._release_drained(agent)
        self._request_leases()

    def _release_drained(self, agent: RemoteAgent) -> None:
        while agent.leaving and agent.leases and not agent.live:
            self._release(agent)

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        if agent.is_ready and not agent.is_closing and not agent.leaving:
            logger.warning("node %s is lost: %s", agent.node, why)
        self.agents.remove(agent)
        self.busy -= agent.busy
        self._source.on_lost(agent, why)
        self._request_leases()
        self._watch_starving()
        self._continue_closing()

    # --- closing ---

    def close(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self._decoder.close()
        for timer in filter(None, (self._idle_timer, self._starved)):
            timer.cancel()
        for agent in list(self.agents):
            agent.close()
        self._close_timer = self.supervisor.call_at(self.supervisor.now() + CLOSE_TIMEOUT, self._give_up_all)
        self._continue_closing()

    def _give_up_all(self) -> None:
        for agent in list(self.agents):
            agent.give_up(f"it did not end within {CLOSE_TIMEOUT:.0f} s")

    def _continue_closing(self) -> None:
        if self._on_closed is None or self.agents or self._close_timer is None:
            return
        self._close_timer.cancel()
        self._close_timer = None
        self._source.close(self._on_closed)
