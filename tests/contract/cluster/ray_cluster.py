"""A real Ray cluster of the tests: nodes that are processes of their own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}


class RayCluster:
    """A cluster whose nodes can be added and removed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, cpus: int) -> Any:
        """Start a node with so many slots."""
        node = self._cluster.add_node(num_cpus=cpus)
        self.nodes.append(node)
        return node

    def remove_node(self, node: Any, *, gently: bool = False) -> None:
        """Kill a node's processes, or end them in order."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=gently)

    def settings(self) -> str:
        """Return the value of EXECUTOR_ADAPTER_CLUSTER__RAY for this cluster."""
        return json.dumps({"address": self.address})

    def stop(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(nodes: int = 2, cpus: int = 2) -> Iterator[RayCluster]:
    """Run a cluster while the block lasts."""
    os.environ |= ENVIRONMENT
    cluster = RayCluster()
    try:
        for _ in range(nodes):
            cluster.add_node(cpus)
        yield cluster
    finally:
        cluster.stop()
