"""Leases on a Ray cluster: each is a placement group of one bundle, and an actor on its node starts the agent there.

Ray places the leases, counts them, and sees the pending ones as demand, so its autoscaler grows and shrinks with it. No
attempt is a task of Ray's. So neither its retries nor its memory monitor's concern one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import CPU, GPU
from executor_adapter.pools.cluster.engines.leases import WATCH_INTERVAL, Amounts, Engine, EnginePool, able_nodes
from executor_adapter.pools.cluster.engines.ray_connection import PROBE_TIMEOUT, SLOT, RayUser, node_name
from executor_adapter.pools.cluster.engines.ray_node import NodeActor, certificates_of_ray, gpus_of_bundle
from executor_adapter.pools.cluster.link import Certificates
from executor_adapter.pools.cluster.node_data import Kept, NodeValue
from executor_adapter.pools.cluster.references import kept_on, note_kept

PENDING_INTERVAL = 0.02
"""Seconds between two looks at leases that are not placed yet: one short request to Ray's control store."""


class _Node:
    """The actor on one node, and the leases that it was told of."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        """What its agent calls itself."""
        self.actor = actor
        self.word = actor.next_word.remote()
        """Resolves to None where its agent does not reach this program, and to why that has ended."""
        self.leases: set[int] = set()
        self.was_asked = False
        """Whether its agent has ended since it was asked to."""


class RayCluster(Engine):
    """The client of a Ray cluster, and the cluster itself where it is a local one."""

    name = "Ray"

    def __init__(self, *of_engine: Any) -> None:
        super().__init__(*of_engine)
        self._bundle: dict[str, float] = {}
        self._ray: Any = None
        self._user = RayUser()
        self._head: dict[str, Any] = {}
        self._groups: dict[int, Any] = {}
        """The placement group of each lease."""
        self._pending: set[int] = set()
        """Leases that are not placed yet."""
        self._asked_gpus: dict[int, tuple[Any, str]] = {}
        """Leases that are placed: the answer which GPUs each has, and its node."""
        self._nodes: dict[str, _Node] = {}
        self._postponed: list[Callable[[], object]] = []
        """Calls to the control store that wait until it answers."""

    def connect(self) -> str:
        import ray  # Only here: programs that do not use it need not have it.

        capacity = dict(self._capacity()) if self._address is None else {}
        # A local cluster has what plain leases take, whatever processors there are.
        capacity[CPU] = max(capacity.get(CPU, 1), self._slots * (self._resources or {}).get(CPU, 0))
        scheduler = self._scheduler = self._user.join(self._address, capacity)
        self._ray = ray
        self._bundle = dict(self._resources or {SLOT if self._user.is_local else CPU: 1})
        self.is_fixed = self._user.is_local
        return scheduler

    def certificates(self) -> Certificates | None:
        return certificates_of_ray()

    def ask(self, head: dict[str, Any], lease: int, needs: Amounts) -> None:
        if not self._user.is_connected():
            self.connect()
        if why := self._user.why_silent():
            raise ConnectionError(f"its control store does not answer: {why}")
        self._head = head
        bundle, name = {**self._bundle, **needs}, f"{self._name_of_leases}{lease}"
        self._groups[lease] = self._ray.util.placement_group([bundle], name=name)
        self._pending.add(lease)

    def find_nodes(self, needs: Amounts) -> tuple[list[str], str]:
        if not self._user.answers():
            return [], ""
        return able_nodes({**self._bundle, **needs}, self._node_resources(), "node")

    def _node_resources(self) -> dict[str, Amounts]:
        return {node_name(node): node["Resources"] for node in self._ray.nodes() if node["Alive"]}

    def usage(self, leases: Collection[int]) -> tuple[list[str], bool]:
        holders = [node.name for node in self._nodes.values() if not node.leases.isdisjoint(leases)]
        free = self._ray.available_resources() if self._user.answers() else self._bundle
        return holders, any(free.get(name, 0) < amount for name, amount in self._bundle.items())

    def others(self) -> dict[str, int]:
        from ray.autoscaler.v2.sdk import get_cluster_status

        if not self._user.answers():
            return {}
        demands: Any = get_cluster_status(self._scheduler, math.ceil(PROBE_TIMEOUT)).resource_demands
        bundles = [(each.bundle, each.count) for of in demands.ray_task_actor_demand for each in of.bundles_by_count]
        ours, table = {group.id.hex() for group in self._groups.values()}, self._ray.util.placement_group_table()
        groups = [group for name, group in table.items() if group["state"] == "PENDING" and name not in ours]
        bundles += [(bundle, 1) for group in groups for bundle in group["bundles"].values()]
        nodes = self._node_resources()
        waiting: Counter[str] = Counter()
        for bundle, count in bundles:
            for node in able_nodes(bundle, nodes, "node")[0] if bundle else ():
                waiting[node] += count * max(1, math.ceil(bundle.get(CPU, 1)))
        # The last lease stays: a group is placed only where a processor is free at the moment at which Ray looks, and
        # beside tasks that follow one another without a pause that may be never again.
        given, spare = {}, max(0, sum(len(node.leases) for node in self._nodes.values()) - 1)
        for holder in self._nodes.values():
            given[holder.name] = min(waiting[holder.name], len(holder.leases), spare)
            spare -= given[holder.name]
        return given

    def drop(self, lease: int) -> None:
        self._pending.discard(lease)
        self._asked_gpus.pop(lease, None)
        for node in self._nodes.values():
            node.leases.discard(lease)
        if (group := self._groups.pop(lease, None)) is not None:
            self._when_it_answers(lambda: self._ray.util.remove_placement_group(group))

    # --- data ---

    def lend(self, node: str, attempt: int, references: tuple[Any, ...]) -> None:
        for each in self._nodes.values():
            if each.name == node:
                each.actor.lend.remote(attempt, list(references))

    def open_kept(self, kept: Kept) -> Any:
        # It waits in the actor of its node, which stores it now.
        found = [node for node in list(self._nodes.values()) if node.name == kept.node]
        if not found or not self._user.is_connected():
            raise LookupError(f"node {kept.node} is gone, and the result with it")
        reference = self._user.call(found[0].actor.take.remote, kept.name)
        note_kept(reference.hex(), kept.node)
        return reference

    # --- looking at Ray ---

    def poll(self) -> float | None:
        if not (self._groups or self._nodes or self._postponed):
            return None
        if not self._user.is_connected():
            # Otherwise the next call would start a cluster: Ray does so where there is none.
            self._nodes.clear()
            self._postponed.clear()
            for lease in list(self._groups):
                self._forget(lease, self._user.why_ended())
        if not self._user.answers():
            return WATCH_INTERVAL
        calls, self._postponed = self._postponed, []
        for call in calls:
            call()
        if self._pending:
            self._look_at_pending()
        if self._asked_gpus:
            self._look_at_gpus()
        if self._nodes:
            self._look_at_actors()
        if self._pending or self._asked_gpus:
            return PENDING_INTERVAL
        return WATCH_INTERVAL if self._nodes or self._postponed else None

    def _look_at_pending(self) -> None:
        table = self._ray.util.placement_group_table()
        for lease in list(self._pending):
            found = table.get(self._groups[lease].id.hex(), {"state": "PENDING"})
            if found["state"] == "CREATED":
                self._pending.discard(lease)
                self._on_placed(lease, found["bundles_to_node_id"][0])
            elif found["state"] == "REMOVED":
                self._forget(lease, "Ray has removed its placement group")

    def _on_placed(self, lease: int, node_id: str) -> None:
        group = self._groups[lease]
        gpus = group.bundle_specs[0].get(GPU, 0)
        if not gpus:
            self._hold(lease, node_id, {})
            return
        # Ray tells which ones they are to what runs in the bundle alone; they stay the same while the group lives.
        place = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, 0)
        task = self._ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=place)(gpus_of_bundle)
        self._asked_gpus[lease] = task.remote(), node_id

    def _look_at_gpus(self) -> None:
        for lease, (answer, node_id) in list(self._asked_gpus.items()):
            if self._ray.wait([answer], timeout=0)[0]:
                del self._asked_gpus[lease]
                try:
                    self._hold(lease, node_id, self._ray.get(answer))
                except Exception as error:
                    self._forget(lease, error)

    def _hold(self, lease: int, node_id: str, environment: dict[str, str]) -> None:
        if (node := self._nodes.get(node_id)) is None:
            node = self._nodes[node_id] = self._start_actor(node_id)
        node.leases.add(lease)
        node.actor.hold.remote(lease, environment)

    def _start_actor(self, node_id: str) -> _Node:
        names = {each["NodeID"]: node_name(each) for each in self._ray.nodes()}
        name = names.get(node_id, f"ray/{node_id[:8]}")
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
        # The default of a program's runtime environment holds for it as for the program's own actors.
        actor_class = self._ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=8)(NodeActor)
        return _Node(name, actor_class.options(scheduling_strategy=place).remote(self._head, name))

    def _look_at_actors(self) -> None:
        words = [node.word for node in self._nodes.values()]
        done, _ = self._ray.wait(words, num_returns=len(words), timeout=0)
        for node_id, node in [each for each in self._nodes.items() if each[1].word in done]:
            why: str | Exception | None
            try:
                why = self._ray.get(node.word)
            except Exception as error:  # Its actor could not start the agent.
                why = error
            was_asked, node.was_asked = node.was_asked, why == ""
            if why is None:
                node.word = node.actor.next_word.remote()
                self._relay(node)
            elif why or was_asked:  # What it had reported before it was asked is known at the second look.
                self._remove(node_id, node, why)

    def _relay(self, node: _Node) -> None:
        """Carry the link of an agent that does not reach this program, through the actor on its node."""
        answer, actor = self._user.answer, node.actor
        read, write = lambda: answer(actor.read_link.remote), lambda part: answer(actor.write_link.remote, part)
        self._ends.relay(f"node {node.name}", read, write)

    def on_agent_lost(self, node: str) -> None:
        for node_id, each in list(self._nodes.items()):
            if each.name == node:
                self._remove(node_id, each, "")

    def _remove(self, node_id: str, node: _Node, why: str | Exception) -> None:
        del self._nodes[node_id]
        self._when_it_answers(lambda: node.actor.end.remote())
        for lease in node.leases.copy():
            self._forget(lease, why)

    def _when_it_answers(self, call: Callable[[], object]) -> None:
        """Make a call to Ray's control store, or keep it until that is there again."""
        if self._user.answers():
            call()
        elif self._user.is_connected():
            self._postponed.append(call)

    def _forget(self, lease: int, why: str | Exception) -> None:
        self.drop(lease)
        self._ends.lease_ended(lease, why)

    def close(self) -> None:
        if self._ray is None:
            return
        if self._user.answers():  # Otherwise each call would be tried for a second, and none is made.
            for node_id, node in list(self._nodes.items()):
                self._remove(node_id, node, "")
            for lease in list(self._groups):
                self.drop(lease)
        self._user.leave()


class RayPool(EnginePool):
    """Runs attempts on the nodes of a Ray cluster; without an address, on a local one that it starts."""

    name: ClassVar[str] = "ray"

    engine: ClassVar[type[Engine]] = RayCluster

    reference: ClassVar[tuple[str, str]] = "ray", "ObjectRef"
    lends: ClassVar[bool] = True

    @classmethod
    def node_value(cls, module: Any, reference: Any, shown: str) -> NodeValue:
        # A result that was kept is there, or being stored. Without a connection Ray would start a cluster.
        if not module.is_initialized():
            raise InvalidJobError(f"{shown} is an ObjectRef of a connection to Ray that has ended")
        if reference.hex() not in kept_on and not module.wait([reference], timeout=0, fetch_local=False)[0]:
            raise InvalidJobError(f"{shown} is an ObjectRef that is not ready: wait for it first (ray.wait)")
        return NodeValue(reference.hex(), f"{shown}, the ObjectRef {reference.hex()},")
