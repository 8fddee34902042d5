"""Measures task runners on one cluster of Dask or Ray, which runs in this Python: ours beside that of the engine.

The Prefect server is that of the environment.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.apart import apart
from tests.benchmarks.clusters import NODES, EngineName, cluster_of
from tests.benchmarks.runners import WORKERS, ClusterRunner, measure_killed_worker, measure_on_cluster

ROUNDS = 3


def measure_rates(
    engine: EngineName, tasks: dict[ClusterRunner, int], folder: Path
) -> dict[ClusterRunner, list[float]]:
    """Measure tasks per second of each runner in turn, with warm workers, until the last result."""
    rates: dict[ClusterRunner, list[float]] = {runner: [] for runner in tasks}
    with cluster_of(engine, folder, WORKERS // NODES) as (address, _):
        for _ in range(ROUNDS):
            for runner, count in tasks.items():
                rates[runner].append(apart(measure_on_cluster, engine, runner, address, count)["results"])
    return rates


def run_with_a_killed_node(engine: EngineName, runner: ClusterRunner, folder: Path) -> str:
    """Kill a node while each slot of the cluster runs a task; return the id of the flow run, which has ended."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    with cluster_of(engine, folder, WORKERS // NODES) as (address, pid):
        return apart(measure_killed_worker, engine, runner, address, pid, str(notes))
