"""A real Ray cluster of the tests: nodes that are processes of their own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

REDIS = "127.0.0.1:6379"

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}


class RayCluster:
    """A cluster whose nodes can be added and removed."""

    def __init__(self, host: str | None = None, port: int | None = None) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= ENVIRONMENT
        where = {"node_ip_address": host, "gcs_server_port": port}
        head = {"num_cpus": 0, "include_dashboard": False, **{name: each for name, each in where.items() if each}}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, cpus: int, **more: Any) -> Any:
        """Start a node with so many slots. `more`: such as num_gpus=1."""
        node = self._cluster.add_node(num_cpus=cpus, **more)
        self.nodes.append(node)
        return node

    def remove_node(self, node: Any, *, gently: bool = False) -> None:
        """Kill a node's processes, or end them in order."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=gently)

    def count_nodes(self) -> int:
        """Return the number of nodes that the control store knows to be alive, the head among them."""
        return sum(bool(node["Alive"]) for node in self._cluster.global_state.node_table())

    def stop_head(self) -> None:
        """Kill the control store (GCS)."""
        self._cluster.head_node.kill_gcs_server()

    def start_head(self) -> None:
        """Start the control store again, on the same port."""
        self._cluster.head_node.start_gcs_server()

    def settings(self) -> str:
        """Return the value of EXECUTOR_ADAPTER_CLUSTER__RAY for this cluster."""
        return json.dumps({"address": self.address})

    def stop(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(nodes: int = 2, cpus: int = 2, port: int | None = None) -> Iterator[RayCluster]:
    """Run a cluster while the block lasts. `port`: that of its control store; None: any."""
    cluster = RayCluster(port=port)
    try:
        for _ in range(nodes):
            cluster.add_node(cpus)
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def control_store_in_redis() -> Iterator[None]:
    """Let clusters that are started in the block survive a restart of their control store."""
    import redis

    namespace = f"ea{uuid.uuid4().hex[:12]}"
    variables = {"RAY_REDIS_ADDRESS": REDIS, "RAY_external_storage_namespace": namespace}
    os.environ |= variables
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        host, _, port = REDIS.partition(":")
        with redis.Redis(host, int(port)) as client:
            for key in client.scan_iter(f"*{namespace}*"):
                client.delete(key)


class RayClusterApart:
    """A cluster of one node with one slot, started by a process of its own: Ray ends that with the control store.

    `port`: that of its control store; 0: any.
    """

    def __init__(self, port: int = 0) -> None:
        command = [sys.executable, "-m", __name__, str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._answer()

    def stop_head(self) -> None:
        """Kill the control store."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop_head\n")
        self._process.stdin.flush()
        self._answer()

    def stop(self) -> None:
        """End all nodes."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = ""
        while not line.startswith("answer "):
            line = self._process.stdout.readline()
            assert line, "the process of the cluster has ended"
        return line.removeprefix("answer ").strip()


def _serve(port: int) -> None:
    with ray_cluster(nodes=1, cpus=1, port=port or None) as cluster:
        print("answer", cluster.address, flush=True)
        for line in sys.stdin:
            getattr(cluster, line.strip())()
            print("answer done", flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
