"""A month on paper: what the program of a cluster of 200 nodes with two million jobs a day needs.

It is computed from what one node and one job cost, which is measured.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Report, Row
from tests.benchmarks.nodes import (
    CHOICES,
    FarPool,
    dask_nodes,
    measure_nodes,
    measure_queued_job,
    measure_stored_job,
    ssh_nodes,
)
from tests.contract.cluster.dask_cluster import dask_cluster

FEW, MANY = 2, 10
NODES, JOBS_A_DAY = CHOICES, 2_000_000
DAY = 86_400.0
NAMES: dict[FarPool, str] = {"ssh": "ssh", "dask": "Dask"}


def shown(what: str, figure: float, form: str, ours: str = "", at_most: float | None = None) -> Row:
    return Row(what=what, ours=ours or f"{figure:{form}}", figure=figure, form=form, at_most=at_most)


@pytest.mark.bench
@pytest.mark.parametrize("pool", ["ssh", "dask"])
def test_a_node(pool: FarPool, report: Report, tmp_path: Path) -> None:
    """What a node costs the program: memory, descriptors, threads, and CPU while nothing runs and for each job."""
    if pool == "ssh":
        few, many = (apart(measure_nodes, pool, ssh_nodes(tmp_path, nodes), nodes, tmp_path) for nodes in (FEW, MANY))
    else:
        with dask_cluster(tmp_path, workers=MANY, threads=1) as cluster:
            settings = dask_nodes(cluster.address)
            few, many = (apart(measure_nodes, pool, settings, nodes, tmp_path) for nodes in (FEW, MANY))
    more = {name: (many[name] - few[name]) / (MANY - FEW) for name in many}
    all_of = {name: few[name] + (NODES - FEW) * more[name] for name in many}
    name = NAMES[pool]
    report.add(
        [
            shown(f"KiB of memory of a program for a node of {name}", more["bytes"] / 1024, ",.0f"),
            shown(f"descriptors of a program for a node of {name}", more["descriptors"], ".1f"),
            shown(f"threads of a program for a node of {name}", more["threads"], ".1f"),
            shown(f"ms of CPU a minute for an idle node of {name}", more["idle"] * 60e3, ".1f"),
            shown(f"microseconds of CPU a no-op job on {FEW} nodes of {name}", few["job"] * 1e6, ".0f"),
            shown(f"microseconds of CPU to choose one of {NODES} nodes of {name}", many["choice"] * 1e6, ".0f"),
            shown(f"on paper, {NODES} nodes of {name}: MiB of memory", all_of["bytes"] / 2**20, ",.0f"),
            shown(f"on paper, {NODES} nodes of {name}: descriptors", all_of["descriptors"], ",.0f"),
            shown(f"on paper, {NODES} nodes of {name}: % of a processor while idle", all_of["idle"] * 100, ".1f"),
            shown(
                f"on paper, {NODES} nodes of {name}: microseconds of CPU a job",
                (few["job"] + many["choice"]) * 1e6,
                ".0f",
            ),
        ]
    )


@pytest.mark.bench
def test_a_job(report: Report, tmp_path: Path) -> None:
    """What a job costs the program: memory while it waits, CPU, and what is written to its store."""
    nodes, rate = ssh_nodes(tmp_path, 1), JOBS_A_DAY / DAY
    queued = apart(measure_queued_job, "ssh", nodes, tmp_path)
    job = apart(measure_stored_job, "ssh", nodes, f"sqlite:///{tmp_path}/jobs.db", rate, tmp_path)
    report.add(
        [
            shown("bytes of memory of a job of pool='ssh' that waits", queued, ",.0f"),
            shown(f"ms of CPU a job with SQLite, {rate:.0f} a second", job["cpu"] * 1e3, ".2f"),
            shown(f"writes to SQLite a job, {rate:.0f} a second", job["writes"], ".2f"),
            shown(f"KiB that the disk gets for a job in SQLite, {rate:.0f} a second", job["written"] / 1024, ".1f"),
            shown("KiB of a finished job in SQLite", job["kept"] / 1024, ".2f"),
            shown(f"on paper, {JOBS_A_DAY:,} jobs a day: % of a processor", 100 * job["cpu"] * rate, ".1f"),
            shown(f"on paper, {JOBS_A_DAY:,} jobs a day: writes to SQLite a second", job["writes"] * rate, ".0f"),
            shown(f"on paper, {JOBS_A_DAY:,} jobs a day: GB that SQLite grows", job["kept"] * JOBS_A_DAY / 1e9, ".1f"),
        ]
    )
