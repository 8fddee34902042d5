"""Leases on a Ray cluster: each is a placement group of one bundle, and an actor on its node starts the agent there.

Ray places the leases, counts them, and sees the pending ones as demand, so its autoscaler grows and shrinks with it. No
attempt is a task of Ray's. So neither its retries nor its memory monitor's concern one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster.engines.leases import Engine, EngineLeases, LeaseEnds
from executor_adapter.pools.cluster.engines.ray_node import NodeActor
from executor_adapter.pools.cluster.pool import RemotePool

PENDING_INTERVAL = 0.02
"""Seconds between two looks at leases that are not placed yet: one short request to Ray's control store."""

WATCH_INTERVAL = 0.5
"""Seconds between two looks at actors, whose agents report by themselves what matters for jobs."""


class RayPool(RemotePool):
    """Runs attempts on the nodes of a Ray cluster; without an address, on a local one that it starts."""

    name: ClassVar[str] = "ray"

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        address: str | None = None,
        listen_host: str | None = None,
        resources: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        bundle = dict(resources or {"CPU": 1})

        def make_source(pool: RemotePool) -> EngineLeases:
            return EngineLeases(pool, lambda ends: RayCluster(ends, address, bundle, max_workers), listen_host)

        super().__init__(supervisor, max_workers, make_source, **options)


class _Node:
    """The actor on one node, and the leases that it was told of."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        """What its agent calls itself."""
        self.actor = actor
        self.end = actor.wait_for_end.remote()
        """Resolves to why its agent has ended."""
        self.leases: set[int] = set()


class RayCluster(Engine):
    """The client of a Ray cluster, and the cluster itself where it is a local one."""

    name = "Ray"

    def __init__(self, ends: LeaseEnds, address: str | None, bundle: dict[str, float], slots: int) -> None:
        self._ends = ends
        self._address = address
        self._bundle = bundle
        self._slots = slots
        self._ray: Any = None
        self._is_ours = False
        """Whether this pool has connected the program to Ray, and disconnects it."""
        self._head: dict[str, Any] = {}
        self._groups: dict[int, Any] = {}
        """The placement group of each lease."""
        self._pending: set[int] = set()
        """Leases that are not placed yet."""
        self._nodes: dict[str, _Node] = {}

    def connect(self) -> str:
        import ray  # Only here: programs that do not use it need not have it.

        self._ray = ray
        if not ray.is_initialized():
            self._is_ours = True
            address = self._address or os.environ.get("RAY_ADDRESS") or "local"
            options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
            if address == "local":
                # Its leases are slots of this executor, whatever processors there are.
                options |= {"num_cpus": self._slots, "include_dashboard": False}
            log = logging.getLogger("ray")
            level = log.level
            log.setLevel(logging.ERROR)  # It warns that it sets no signal handler in a thread, and none is wanted.
            try:
                ray.init(**options)
            finally:
                log.setLevel(level)
        return str(ray.get_runtime_context().gcs_address)

    def ask(self, head: dict[str, Any], lease: int) -> None:
        self._head = head
        name = f"executor-adapter-lease-{head['token'][:8]}-{lease}"
        self._groups[lease] = self._ray.util.placement_group([self._bundle], name=name)
        self._pending.add(lease)

    def drop(self, lease: int) -> None:
        self._pending.discard(lease)
        for node in self._nodes.values():
            node.leases.discard(lease)
        if (group := self._groups.pop(lease, None)) is not None:
            self._ray.util.remove_placement_group(group)

    # --- looking at Ray ---

    def poll(self) -> float | None:
        if self._pending:
            self._look_at_pending()
        if self._nodes:
            self._look_at_actors()
        return PENDING_INTERVAL if self._pending else WATCH_INTERVAL if self._nodes else None

    def _look_at_pending(self) -> None:
        table = self._ray.util.placement_group_table()
        for lease in list(self._pending):
            found = table.get(self._groups[lease].id.hex(), {"state": "PENDING"})
            if found["state"] == "CREATED":
                self._pending.discard(lease)
                self._hold(lease, found["bundles_to_node_id"][0])
            elif found["state"] == "REMOVED":
                self._forget(lease, "Ray has removed its placement group")

    def _hold(self, lease: int, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = self._start_actor(node_id)
        node.leases.add(lease)
        node.actor.hold.remote(lease)

    def _start_actor(self, node_id: str) -> _Node:
        addresses = {each["NodeID"]: each["NodeManagerAddress"] for each in self._ray.nodes()}
        name = f"{addresses.get(node_id, 'ray')}/{node_id[:8]}"
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
        # The default of a program's runtime environment holds for it as for the program's own actors.
        options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 8}
        actor_class = self._ray.remote(**options)(NodeActor)
        return _Node(name, actor_class.options(scheduling_strategy=place).remote(self._head, name))

    def _look_at_actors(self) -> None:
        ends = [node.end for node in self._nodes.values()]
        done, _ = self._ray.wait(ends, num_returns=len(ends), timeout=0)
        for node_id, node in list(self._nodes.items()):
            if node.end in done:
                self._on_end(node_id, node)

    def _on_end(self, node_id: str, node: _Node) -> None:
        """Take note that an agent has ended, or that its actor could not start it."""
        is_final = False
        try:
            why = self._ray.get(node.end)
        except Exception as error:
            why = _first_line(error)
            is_final = "ModuleNotFoundError" in str(error) or "ImportError" in str(error)
            if is_final:
                why = f"{why}: install prefect-executor-adapter on the nodes"
        self._remove(node_id, node, why, is_final)

    def on_agent_lost(self, node: str) -> None:
        for node_id, each in list(self._nodes.items()):
            if each.name == node:
                self._remove(node_id, each, "", is_final=False)

    def _remove(self, node_id: str, node: _Node, why: str, is_final: bool) -> None:
        del self._nodes[node_id]
        self._ray.kill(node.actor, no_restart=True)  # It may be stopped, and so may the agent.
        for lease in node.leases.copy():
            self._forget(lease, why, is_final=is_final)

    def _forget(self, lease: int, why: str, *, is_final: bool = False) -> None:
        self.drop(lease)
        self._ends.lease_ended(lease, why, is_final=is_final)

    def close(self) -> None:
        if self._ray is None:
            return
        for node in self._nodes.values():
            self._ray.kill(node.actor, no_restart=True)
        self._nodes.clear()
        for lease in list(self._groups):
            self.drop(lease)
        if self._is_ours:
            self._ray.shutdown()


def _first_line(error: Exception) -> str:
    lines = [line for line in text_of(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
