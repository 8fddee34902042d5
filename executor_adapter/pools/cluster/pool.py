"""The pool of a cluster: gives attempts to agents on other machines, on as many slots as it has leases."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.config import ClusterSettings
from executor_adapter.job import shape_of
from executor_adapter.pools.base import Assignment, LeasingPool, PoolSupervisor, Recall, Timer
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.grants import LeaseWatch, ShapeBooks, choose_agent
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.link import LinkEnd
from executor_adapter.pools.cluster.references import remote_payload
from executor_adapter.pools.cluster.remote_agent import Lease, RemoteAgent
from executor_adapter.pools.transport.envelope import STOPPED, Body
from executor_adapter.pools.transport.payload import Initializer, Payload, encode_initializer
from executor_adapter.worker.wire import lease_time

if TYPE_CHECKING:
    from executor_adapter.job import Job, Shape

logger = logging.getLogger("executor_adapter.cluster")

CLOSE_TIMEOUT = 5.0
"""Seconds that agents may take to end when the pool is closed."""
_FREE_SLOTS, _ROOM = methodcaller("free", ()), attrgetter("room_behind")


class RemotePool(LeasingPool):
    """Runs attempts on other machines; see `pools.cluster`.

    Options of workers are those of the process pool of one machine, and apply on each node.
    """

    can_limit_memory: ClassVar[bool] = True
    can_stop_soft: ClassVar[bool] = True
    is_here: ClassVar[bool] = False
    shapes: ShapeBooks
    source: LeaseSource
    """Set by each kind of pool."""

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        cluster: ClusterSettings,
        initializer: Initializer | bytes | None = None,
        **worker_options: Any,
    ) -> None:
        super().__init__(supervisor, max_workers)
        self.agents: list[RemoteAgent] = []
        """The agents that are connected, ready or not, in the order in which they are chosen."""
        self._setup: dict[str, Any] = {
            "lost_after": cluster.lost_after,
            "log_level": min(logging.INFO, logging.getLogger().level or logging.INFO),
            "options": {"initializer": encode_initializer(initializer), **worker_options},
        }
        self._lost_after = cluster.lost_after
        self.shapes = ShapeBooks(self, cluster.node_timeout)
        self._store_lease_until = math.inf
        self._watch = LeaseWatch(self, self.shapes, cluster.lease_idle, cluster.max_grant_seconds)
        self._close_timer: Timer | None = None
        self._on_closed: Callable[[], None] | None = None

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        return remote_payload(job)

    @property
    def is_closing(self) -> bool:
        """Whether no attempt will be started any more."""
        return self._on_closed is not None

    def set_lease(self, until: float) -> None:
        self._store_lease_until = until

    def lease_seconds(self) -> float:
        return self._store_lease_until - lease_time()

    # --- assigning ---

    def start(self, assignment: Assignment) -> None:
        is_plain = assignment.job.live.resources is None
        agent = choose_agent(self.agents, assignment, _FREE_SLOTS, ()) if is_plain else None
        if agent is not None:
            self.give(agent, assignment, ())
        else:
            self.shapes.start(assignment)

    def give(self, agent: RemoteAgent, assignment: Assignment, shape: Shape) -> None:
        seq = agent.give(assignment, shape)
        if assignment.payload.lent:
            self.source.lend(agent, seq, assignment.payload.lent)
        self._count(agent)

    def queue_behind(self, assignment: Assignment) -> bool:
        agent = None if assignment.memory_limit is not None else choose_agent(self.agents, assignment, _ROOM, ())
        if agent is not None:
            self.give(agent, assignment, ())
        return agent is not None

    def hand_back_queued(self, before: float) -> bool:
        return sum(agent.give_back_if_stuck(before) for agent in list(self.agents)) > 0

    def unstarted(self) -> list[Assignment]:
        given = (each for agent in self.agents for each in agent.live.values())
        return [*self.shapes.waiting(), *(each for each in given if each.started_at is None)]

    def flush(self) -> None:
        for agent in list(self.agents):
            agent.link.flush()

    def _count(self, agent: RemoteAgent) -> None:
        """Count the slots that the agent's attempts hold: those that are queued behind others hold none."""
        busy = min(agent.plain, max(agent.slots, 1)) + len(agent.live) - agent.plain
        self.busy += busy - agent.busy
        agent.busy = busy

    def on_over(self, agent: RemoteAgent, seq: int, assignment: Assignment, shape: Shape) -> None:
        if assignment.payload.lent:
            self.source.lend(agent, seq, ())
        self._count(agent)
        if agent.free(shape) == 1 or agent.room_behind == 1:  # It was full, and so may others be.
            self.agents.remove(agent)
            self.agents.insert(0, agent)
        if agent.leaving:
            self._release_unused(agent)
        self._watch.release_retiring(agent)
        self.shapes.serve(shape)

    def on_kept(self, body: Body) -> None:
        self.source.on_kept(body)

    # --- taking back and stopping ---

    def recall(self, assignment: Assignment) -> Recall:
        if assignment.worker is None:
            if not self.shapes.take(assignment):
                return Recall.STARTED
        elif assignment.started_at is not None:
            return Recall.STARTED
        else:
            agent, seq = assignment.worker
            if not agent.recall(seq):
                return Recall.ASKED
        self.supervisor.handed_back(assignment)
        return Recall.TAKEN_BACK

    def hand_back_waiting(self, job: Job) -> bool:
        for assignment in reversed(self.shapes.waiting()):
            if assignment.job.live.driver is None and assignment.job.priority <= job.priority:
                return self.recall(assignment) is Recall.TAKEN_BACK
        return False

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.stop(seq, grace)
        elif self.shapes.take(assignment):
            self.supervisor.ended(assignment, STOPPED)

    def interrupt(self, assignment: Assignment) -> bool:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.interrupt(seq)
        return True

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        for agent in list(self.agents):
            while self.shapes.count(()) > max_workers and agent.free(()):
                self.release(agent, ())
        self.shapes.ask_again()

    # --- what a source of leases asks and reports ---

    def connect(self, end: LinkEnd, node: str = "") -> RemoteAgent:
        """Speak with the agent at the other end of a stream. `node`: its name; by default the one that it says."""
        agent = RemoteAgent(self, end, node, self._lost_after)
        self.agents.append(agent)
        return agent

    def granted(self, agent: RemoteAgent, lease: int, environment: Mapping[str, str] | None = None) -> None:
        """Take a lease on the agent's node: one more attempt of its shape may run there."""
        if agent.is_closing:
            return  # Its end gives all its leases back, and says why.
        shape = self.shapes.on_granted(lease)
        if shape is None:  # It was withdrawn meanwhile, or its engine has granted it a second time.
            agent.return_lease(lease)
            return
        self.source.on_granted()
        agent.add_lease(Lease(lease, shape, self.supervisor.now(), environment or {}))
        if agent.leaving:
            self.release(agent, shape)
            return
        self.shapes.serve(shape)
        if not self.source.keeps_idle:
            self._watch.begin()

    def release(self, agent: RemoteAgent, shape: Shape) -> None:
        self.source.release(agent, agent.remove_lease(shape))
        self.close_unused(agent)

    def _release_unused(self, agent: RemoteAgent) -> None:
        for shape, held in list(agent.held.items()):
            for _ in range(held.unused):
                self.release(agent, shape)

    def close_unused(self, agent: RemoteAgent) -> None:
        if not agent.leases and not self.source.keeps_idle and not self.shapes.rests:
            agent.close()

    def others_wait(self, waiting: Mapping[str, int], took: float) -> None:
        """Take note for how many slots others wait on each node, by the engine's books; it `took` so many seconds."""
        if not self.is_closing:
            self._watch.on_others(waiting, took)

    # --- agents (AgentOwner) ---

    def on_hello(self, agent: RemoteAgent, said: dict[str, Any]) -> None:
        if why := frames.refusal(agent.node, said):
            agent.close(why)
        else:
            agent.accept(self._setup)
            self.source.on_ready(agent)

    def may_run_elsewhere(self, agent: RemoteAgent, assignment: Assignment, why: str) -> bool:
        number = assignment.payload.function.number
        is_news = number not in agent.lacking
        agent.lacking.add(number)
        shape = shape_of(assignment.job.live.resources)
        if not any(each.count(shape) and number not in each.lacking for each in self.agents):
            return False
        if is_news:
            logger.warning("jobs of a function go to other nodes than %s: %s", agent.node, why)
        return True

    def on_leaving(self, agent: RemoteAgent) -> None:
        logger.info("node %s is about to leave: it gets no further jobs", agent.node)
        self._release_unused(agent)
        self.shapes.serve_all()

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        if agent.is_ready and not agent.is_closing and not agent.leaving:
            logger.warning("node %s is lost: %s", agent.node, why)
        self.agents.remove(agent)
        self.busy -= agent.busy
        self.source.on_lost(agent, why)
        self.shapes.serve_all()
        self._continue_closing()

    # --- closing ---

    def close(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self.shapes.ask_again()
        self._watch.cancel()
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
        self.source.close(self._on_closed)
