"""What a no-op job costs the program in CPU time, which moves less from machine to machine than rates do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor_adapter.config import Settings
from tests.benchmarks.apart import apart
from tests.benchmarks.clusters import cluster_of
from tests.benchmarks.contestants import PoolName
from tests.benchmarks.cpu import measure_cpu
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.nodes import AnyPool, dask_nodes, ray_nodes, settings_with, ssh_nodes

WORKERS: dict[PoolName, int] = {"process": os.cpu_count() or 2, "thread": 16, "coroutine": 16}


@pytest.mark.bench
@pytest.mark.parametrize("pool", WORKERS)
def test_cpu_of_a_job(pool: PoolName, report: Report, tmp_path: Path) -> None:
    """What it costs the program and all its processes on this machine, without a store and with SQLite."""
    stores = {"": None, ", in SQLite": f"sqlite:///{tmp_path}/jobs.db"}
    report.add(
        [
            row(f"{WORKERS[pool]} workers of {pool}{suffix}", apart(measure_cpu, pool, Settings(), WORKERS[pool], url))
            for suffix, url in stores.items()
        ]
    )


@pytest.mark.bench
@pytest.mark.parametrize("pool", ["ssh", "dask", "ray"])
def test_cpu_of_a_job_elsewhere(pool: AnyPool, report: Report, tmp_path: Path) -> None:
    """What it costs the program by the number of workers of a cluster that run such jobs."""
    with two_nodes(pool, tmp_path) as settings:
        report.add(
            [
                row(f"{workers} workers of {pool.title()}", apart(measure_cpu, pool, settings, workers))
                for workers in (2, 4, 8)
            ]
        )


def row(workers: str, measured: dict[str, Figures]) -> Row:
    program, everything = measured["program"], measured["all"]
    return Row(
        what=f"microseconds of CPU of a program a no-op job, {workers}",
        ours=program.summary(".0f", 1e6),
        beside=f"with the processes below it {everything.summary('.0f', 1e6)}",
        figure=program.median * 1e6,
        form=".0f",
        rounds=measured,
    )


@contextmanager
def two_nodes(pool: AnyPool, folder: Path) -> Iterator[Settings]:
    """Run a cluster of two nodes with four slots each, and yield the settings of a program that uses it."""
    if pool == "ssh":
        yield settings_with(ssh_nodes(folder, 2, slots=4))
    else:
        with cluster_of(pool, folder, slots=4) as (address, _):
            yield settings_with(dask_nodes(address) if pool == "dask" else ray_nodes(address))
