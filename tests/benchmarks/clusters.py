"""The clusters of the benchmarks: two nodes of Dask or Ray on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.contract.cluster.dask_cluster import dask_cluster
from tests.contract.cluster.ray_cluster import ray_cluster

NODES = 2
EngineName = Literal["dask", "ray"]
ENGINES: tuple[EngineName, ...] = ("dask", "ray")


@contextmanager
def cluster_of(engine: EngineName, folder: Path, slots: int = 2) -> Iterator[tuple[str, int]]:
    """Run a cluster with so many slots a node; yield its address, and the pid of a process whose death ends a node."""
    if engine == "dask":
        with dask_cluster(folder, workers=NODES, threads=slots) as dask:
            yield dask.address, dask.workers[0].pid
    else:
        with ray_cluster(nodes=NODES, cpus=slots) as ray:
            yield ray.address, ray.nodes[0].all_processes["raylet"][0].process.pid
