"""The pool of a cluster: gives attempts to agents on other machines, on as many slots as it has leases."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from executor_adapter.config import ClusterSettings
from executor_adapter.pools.base import Assignment, LeasingPool, PoolSupervisor, Recall, Timer
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.grants import (
    LeaseWatch,
    ShapedLeases,
    SlotQueue,
    agent_with_free_slot,
    agent_with_room,
)
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.link import LinkEnd
from executor_adapter.pools.cluster.references import remote_payload
from executor_adapter.pools.cluster.remote_agent import RemoteAgent, ShapedLease
from executor_adapter.pools.transport.envelope import STOPPED
from executor_adapter.pools.transport.payload import Initializer, Payload, encode_initializer
from executor_adapter.worker import lease_time

if TYPE_CHECKING:
    from executor_adapter.job import Job, Shape

logger = logging.getLogger("executor_adapter.cluster")

CLOSE_TIMEOUT = 5.0
"""Seconds that agents may take to end when the pool is closed."""


class RemotePool(LeasingPool):
    """Runs attempts on other machines; see `pools.cluster`.

    Options of workers are those of the process pool of one machine, and apply on each node.
    """

    can_limit_memory: ClassVar[bool] = True
    can_stop_soft: ClassVar[bool] = True
    can_keep: ClassVar[bool] = False
    is_here: ClassVar[bool] = False
    shapes: ShapedLeases
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
        """The agents that are connected, ready or not."""
        self._setup: dict[str, Any] = {
            "lost_after": cluster.lost_after,
            "log_level": min(logging.INFO, logging.getLogger().level or logging.INFO),
            "options": {"initializer": encode_initializer(initializer), **worker_options},
        }
        self._lost_after = cluster.lost_after
        self.queue = SlotQueue(self, cluster.node_timeout)
        self.shapes = ShapedLeases(self, cluster.node_timeout)
        self._store_lease_until = math.inf
        self._watch = LeaseWatch(self, self.queue, self.shapes, cluster.lease_idle, cluster.max_grant_seconds)
        self._close_timer: Timer | None = None
        self._on_closed: Callable[[], None] | None = None

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        return remote_payload(job)

    @property
    def is_closing(self) -> bool:
        """Whether no attempt will be started any more."""
        return self._on_closed is not None

    @property
    def slots(self) -> int:
        """Number of plain attempts that its leases allow; a node that is about to go counts with what runs there."""
        return sum(agent.plain if agent.leaving else agent.slots for agent in self.agents)

    def set_lease(self, until: float) -> None:
        self._store_lease_until = until

    def lease_seconds(self) -> float:
        return self._store_lease_until - lease_time()

    # --- assigning ---

    def start(self, assignment: Assignment) -> None:
        if assignment.job.live.resources is not None:
            self.shapes.start(assignment)
        elif (agent := agent_with_free_slot(self.agents, assignment)) is not None:
            self.give(agent, assignment)
        else:
            self.queue.add(assignment)

    def give(self, agent: RemoteAgent, assignment: Assignment, lease: ShapedLease | None = None) -> None:
        if assignment.payload.lent:
            self.source.lend(agent, assignment.payload.lent)
        if lease is not None:
            assignment.environment = dict(lease.environment) or None
        agent.give(assignment, lease)
        self._count(agent)

    def queue_behind(self, assignment: Assignment) -> bool:
        agent = agent_with_room(self.agents, assignment)
        if assignment.memory_limit is not None or agent is None or agent.room_behind <= 0:
            return False
        self.give(agent, assignment)
        return True

    def hand_back_queued(self, before: float) -> bool:
        return sum(agent.give_back_if_stuck(before) for agent in self.agents) > 0

    def unstarted(self) -> list[Assignment]:
        given = (each for agent in self.agents for each in agent.live.values())
        return [*self.queue.waiting, *self.shapes.waiting(), *(each for each in given if each.started_at is None)]

    def flush(self) -> None:
        for agent in list(self.agents):
            agent.link.flush()

    def _count(self, agent: RemoteAgent) -> None:
        """Count the slots that the agent's attempts hold: those that are queued behind others hold none."""
        busy = min(agent.plain, max(agent.slots, 1)) + len(agent.live) - agent.plain
        self.busy += busy - agent.busy
        agent.busy = busy

    def on_room(self, agent: RemoteAgent, lease: ShapedLease | None) -> None:
        self._count(agent)
        if lease is not None:
            self.shapes.on_free(agent, lease)
        self._release_drained(agent)
        if agent.retiring:
            self._watch.release_retiring(agent)
        if self.queue.waiting:
            self.queue.serve()

    # --- taking back and stopping ---

    def _take_waiting(self, assignment: Assignment) -> bool:
        return self.queue.take(assignment) or self.shapes.take(assignment)

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

    def hand_back_waiting(self, job: Job) -> bool:
        for assignment in reversed(self.queue.waiting):
            if assignment.job.live.driver is None and assignment.job.priority <= job.priority:
                return self.recall(assignment) is Recall.TAKEN_BACK
        return False

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.stop(seq, grace)
        elif self._take_waiting(assignment):
            self.supervisor.ended(assignment, STOPPED)

    def interrupt(self, assignment: Assignment) -> bool:
        if assignment.worker is not None:
            agent, seq = assignment.worker
            agent.interrupt(seq)
        return True

    def resize(self, max_workers: int) -> None:
        super().resize(max_workers)
        for agent in self.agents:
            while self.slots > max_workers and agent.free:
                self.release(agent)
        self.queue.request(withdraws=True)

    # --- what a source of leases asks and reports ---

    def connect(self, end: LinkEnd, node: str = "") -> RemoteAgent:
        """Speak with the agent at the other end of a stream. `node`: its name; by default the one that it says."""
        agent = RemoteAgent(self, end, node, self._lost_after)
        self.agents.append(agent)
        return agent

    def granted(self, agent: RemoteAgent, lease: int) -> None:
        """Take a lease on the agent's node: one more attempt may run there."""
        self.queue.on_granted()
        agent.add_lease(lease)
        self.source.on_granted(agent, lease)
        if self.slots > self.max_workers or self.is_closing:
            self.release(agent)
            return
        self.queue.serve()
        self._watch.on_granted()
        self._look_for_idle()

    def on_lease(self, agent: RemoteAgent, lease: int, environment: dict[str, str]) -> None:
        if agent.is_closing:
            return  # Its end gives all its leases back, and says why.
        if self.source.accepts(lease):
            if shape := self.source.shape_of(lease):
                self._on_shaped_lease(agent, ShapedLease(lease, shape, self.supervisor.now(), environment))
            else:
                self.granted(agent, lease)
        else:  # It was withdrawn meanwhile, or its engine has granted it a second time.
            agent.return_lease(lease)

    def _on_shaped_lease(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        agent.shaped.add(lease)
        self.source.on_granted(agent, lease.number)
        self.shapes.granted(agent, lease)
        self._watch.on_granted()
        self._look_for_idle()

    def release(self, agent: RemoteAgent) -> None:
        self.source.release(agent, agent.remove_lease())
        self.close_unused(agent)

    def release_shaped(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        if lease.is_retiring:
            self._watch.on_retired(lease.shape)
        agent.shaped.remove(lease)
        agent.return_lease(lease.number)
        self.source.release(agent, lease.number)
        self.close_unused(agent)

    def close_unused(self, agent: RemoteAgent) -> None:
        if agent.is_unused and not self.source.keeps_idle and not self._watch.rests:
            agent.close()

    def ask_for(self, count: int, shape: Shape) -> None:
        if count > 0:
            self.source.request(count, shape)
            self._look_for_idle()
        else:
            self.source.withdraw(-count, shape)

    def count_leases(self, shape: Shape) -> int:
        return sum(lease.shape == shape for agent in self.agents for lease in agent.shaped)

    def may_ask_for(self, shape: Shape) -> bool:
        return self._watch.may_ask_for(shape)

    def _look_for_idle(self) -> None:
        if not self.source.keeps_idle and not self.is_closing and not all(agent.is_unused for agent in self.agents):
            self._watch.begin()

    def others_wait(self, waiting: Mapping[str, int], took: float) -> None:
        """Take note for how many slots others wait on each node, by the engine's books; it `took` so many seconds."""
        if not self.is_closing:
            self._watch.on_others(waiting, took)

    def not_granted(self, why: str, shape: Shape = ()) -> None:
        """Take note that leases cannot be had now; the source keeps trying. `why` is shown, and logged once."""
        if self.queue.note_failure(why, shape):
            logger.warning("%s", why)
        if shape:
            self.shapes.on_failure(shape, why)

    def refused(self, why: str) -> None:
        """Take note that no further try can help: what waits for a lease fails with `why`."""
        logger.error("%s", why)
        self.queue.note_failure(why)
        self.shapes.refuse_all(why)
        self.queue.refuse()

    def nodes_sought(self, shape: Shape, nodes: Collection[str], why: str, is_fixed: bool) -> None:
        """Take note which nodes could hold a lease of a shape that was asked for.

        `why`: in words, why none could, or "". `is_fixed`: no further node will join.
        """
        if not shape:
            self.queue.on_nodes_sought(nodes, why)
        elif why:
            self.shapes.on_unplaceable(shape, why, is_final=is_fixed)
        else:
            self.shapes.on_placeable(shape, nodes)

    # --- agents (AgentOwner) ---

    def on_hello(self, agent: RemoteAgent, said: dict[str, Any]) -> None:
        if why := frames.refusal(agent.node, said):
            agent.refuse(why)
        else:
            agent.accept(self._setup)
            self.source.on_ready(agent)

    def may_run_elsewhere(self, agent: RemoteAgent, assignment: Assignment, why: str) -> bool:
        number = assignment.payload.function.number
        is_news = number not in agent.lacking
        agent.lacking.add(number)
        others = [each for each in self.agents if each.slots and number not in each.lacking]
        if assignment.job.live.resources is not None or not others:
            return False
        if is_news:
            logger.warning("jobs of a function go to other nodes than %s: %s", agent.node, why)
        return True

    def on_leaving(self, agent: RemoteAgent) -> None:
        logger.info("node %s is about to leave: it gets no further jobs", agent.node)
        self.shapes.on_leaving(agent)
        self._release_drained(agent)
        self.queue.serve()
        self.queue.request()

    def _release_drained(self, agent: RemoteAgent) -> None:
        while agent.leaving and agent.leases and not agent.plain:
            self.release(agent)

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        if agent.is_ready and not agent.is_closing and not agent.leaving:
            logger.warning("node %s is lost: %s", agent.node, why)
        self.agents.remove(agent)
        self.busy -= agent.busy
        self.source.on_lost(agent, why)
        self.shapes.on_lost(agent)
        self.queue.serve()
        self.queue.request()
        self._continue_closing()

    # --- closing ---

    def close(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self.shapes.close()
        self.queue.close()
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
