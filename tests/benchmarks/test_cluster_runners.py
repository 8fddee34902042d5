"""JobTaskRunner compared with DaskTaskRunner of prefect-dask and RayTaskRunner of prefect-ray: one cluster, one server.

PREFECT_RAY_PYTHON names the Python of an environment with this package, prefect-ray and the same Ray; without it, and
without prefect-ray here, nothing is measured on Ray. With CLUSTER_TASKS=1000 theirs get as many tasks as ours, which
takes some ten minutes an engine.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.benchmarks.apart import apart_in
from tests.benchmarks.cluster_runners import measure_rates, run_with_a_killed_node
from tests.benchmarks.clusters import ENGINES, NODES, EngineName
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.runners import WORKERS, ClusterRunner

THEIR_TASKS = int(os.environ.get("CLUSTER_TASKS", "200"))
"""Tasks of a round of theirs: fewer by default, since each takes longer. With CLUSTER_TASKS=1000 they get as many."""
TASKS: dict[ClusterRunner, int] = {"jobs": 1_000, "theirs": THEIR_TASKS}
UNFINISHED = ("Running", "Pending", "Scheduled", "AwaitingRetry", "Retrying")


def python_of(engine: EngineName) -> str:
    """Return the Python that has the peer, or skip the test."""
    named = os.environ.get("PREFECT_RAY_PYTHON") if engine == "ray" else None
    if named is None and importlib.util.find_spec(f"prefect_{engine}") is None:
        pytest.skip(f"no prefect-{engine} here: PREFECT_RAY_PYTHON names a Python that has it")
    return named or sys.executable


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_tasks_on_a_cluster(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """Until the last result, with warm workers."""
    python = python_of(engine)
    with prefect_server("tuned", tmp_path) as server, server.environment():
        rates = apart_in(python, measure_rates, engine, TASKS, tmp_path)
    ours, theirs = Figures(tuple(rates["jobs"])), Figures(tuple(rates["theirs"]))
    ratio = ours.over(theirs)
    report.add(
        [
            Row(
                what=f"JobTaskRunner on {NODES} {engine.title()} nodes, tasks/s beside prefect-{engine}",
                ours=ours.summary(),
                beside=f"{theirs.summary('.1f')}, ratio {ratio.summary('.1f')}",
                figure=ratio.median,
                form=".1f",
                at_least=15.0,
                rounds={"JobTaskRunner": ours, f"{engine.title()}TaskRunner": theirs},
            )
        ]
    )


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_node(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """What the server says of the tasks after one node of the cluster was killed and the flow has ended."""
    python = python_of(engine)
    unfinished: dict[ClusterRunner, int] = {}
    completed: dict[ClusterRunner, int] = {}
    for runner in TASKS:
        folder = tmp_path / runner
        folder.mkdir()
        with prefect_server("tuned", folder) as server, server.environment():
            run = apart_in(python, run_with_a_killed_node, engine, runner, folder)
            unfinished[runner] = server.count(run, *UNFINISHED)
            completed[runner] = server.count(run, "Completed")
    report.add(
        [
            Row(
                what=f"of {2 * WORKERS} tasks not finished for the server after a {engine.title()} node was killed",
                ours=f"{unfinished['jobs']}, {completed['jobs']} completed",
                beside=f"prefect-{engine} {unfinished['theirs']}, {completed['theirs']} completed",
                figure=unfinished["jobs"],
                form=".0f",
                at_most=0,
            )
        ]
    )
