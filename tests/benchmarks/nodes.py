"""Measures what a program with nodes on other machines costs it: a node, a job, and a job in its store.

The nodes of `pool="ssh"` are processes of this machine, which no ssh starts: the program's side is the same.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sqlite3
import sys
import time
from concurrent.futures import wait
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

from executor_adapter import Job, JobExecutor
from executor_adapter.config import (
    ClusterSettings,
    DaskSettings,
    ExecutorSettings,
    RaySettings,
    Settings,
    SshHostSettings,
    SshSettings,
)
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.cluster.grants import choose_agent
from executor_adapter.store import open_store
from executor_adapter.worker.process_tree import resident
from tests.benchmarks.cpu import JOBS, cpu_of, run_burst, submit
from tests.benchmarks.functions import nothing
from tests.insides import supervisor_of

FarPool = Literal["ssh", "dask"]
AnyPool = Literal["ssh", "dask", "ray"]
IDLE_SECONDS = 20.0
PACED_JOBS = 600
CHOICES = 200
"""Nodes among which one is chosen."""


def ssh_nodes(folder: Path, count: int, slots: int = 1) -> ClusterSettings:
    """Return the settings of so many hosts with some slots each, all of which are this machine."""
    command = folder / "ssh"
    command.write_text('#!/bin/sh\nfor command; do :; done\nexec sh -c "$command"\n')
    command.chmod(0o755)
    hosts = tuple(
        SshHostSettings(host=f"node{number}", slots=slots, python=sys.executable, directory=str(Path.cwd()))
        for number in range(count)
    )
    return ClusterSettings(ssh=SshSettings(hosts=hosts, command=(str(command),)), lease_idle=3600.0)


def dask_nodes(address: str) -> ClusterSettings:
    """Return the settings of a Dask cluster."""
    return ClusterSettings(dask=DaskSettings(address=address), lease_idle=3600.0)


def ray_nodes(address: str) -> ClusterSettings:
    """Return the settings of a Ray cluster."""
    return ClusterSettings(ray=RaySettings(address=address), lease_idle=3600.0)


def settings_with(cluster: ClusterSettings) -> Settings:
    return Settings(cluster=cluster, executor=ExecutorSettings(preload=("tests.benchmarks.functions",)))


def measure_nodes(pool: FarPool, cluster: ClusterSettings, nodes: int, folder: Path) -> dict[str, float]:
    """Measure what the program holds and does for so many nodes with a slot each: idle, and for a no-op job.

    Only this process counts: bytes, descriptors and threads, CPU seconds a second, and CPU seconds a job; and those for
    the choice of a node among CHOICES.
    """
    with JobExecutor(nodes, config=settings_with(cluster)) as executor:
        _occupy(executor, pool, nodes, folder / f"begun-{nodes}")
        run_burst(executor, pool, JOBS // 10)
        gc.collect()
        held = {
            "bytes": resident(os.getpid()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
        }
        idle = cpu_of(lambda: time.sleep(IDLE_SECONDS)) / IDLE_SECONDS
        job = cpu_of(lambda: run_burst(executor, pool, JOBS)) / JOBS
        return held | {"idle": idle, "job": job, "choice": _measure_choice(executor, pool)}


def _measure_choice(executor: JobExecutor, pool: FarPool) -> float:
    """Measure the CPU seconds to choose one of CHOICES nodes, which are those of the pool again and again."""
    far: Any = supervisor_of(executor).pools.made[pool]
    agents = list(itertools.islice(itertools.cycle(far.agents), CHOICES))
    job = Job(function=nothing, pool=pool)
    attempt = Assignment(job, 1, far.prepare(job))
    return cpu_of(lambda: [choose_agent(agents, attempt, methodcaller("free", ()), ()) for _ in range(1000)]) / 1000


def measure_queued_job(pool: FarPool, cluster: ClusterSettings, folder: Path) -> float:
    """Measure the bytes that a job takes in this process while it waits for a slot of the one node."""
    with JobExecutor(1, config=settings_with(cluster)) as executor:
        run_burst(executor, pool, 100)
        gate = folder / "gate"
        guard = executor.submit(Job(function=_wait_for, args=(str(gate),), pool=pool))
        while not guard.running():
            time.sleep(0.001)
        gc.collect()
        before = resident(os.getpid())
        futures = [submit(executor, pool) for _ in range(JOBS)]
        while executor.stats().jobs_pending < JOBS:
            time.sleep(0.001)
        held = resident(os.getpid()) - before
        gate.touch()
        wait(futures)
    return held / JOBS


def measure_stored_job(
    pool: FarPool, cluster: ClusterSettings, url: str, rate: float, folder: Path
) -> dict[str, float]:
    """Measure a job of a program with a store, to which so many jobs a second come.

    CPU seconds of this process, calls that write to the store, and bytes that the disk gets and that the store keeps.
    """
    store: Any = open_store(url)
    writes, write = [0], store.write

    def counting(*args: Any, **kwargs: Any) -> Any:
        writes[0] += 1
        return write(*args, **kwargs)

    store.write = counting
    database = folder / "jobs.db"
    with JobExecutor(1, config=settings_with(cluster), store=store) as executor:
        run_burst(executor, pool, PACED_JOBS)
        before = writes[0], _written_bytes(), _size_of(database)
        cpu = cpu_of(lambda: _run_paced(executor, pool, rate))
        executor.flush()
        after = writes[0], _written_bytes(), _size_of(database)
    counted = [(new - old) / PACED_JOBS for old, new in zip(before, after, strict=True)]
    return {"cpu": cpu / PACED_JOBS, "writes": counted[0], "written": counted[1], "kept": counted[2]}


def _run_paced(executor: JobExecutor, pool: FarPool, rate: float) -> None:
    began, futures = time.monotonic(), []
    for number in range(PACED_JOBS):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        futures.append(submit(executor, pool))
    wait(futures)


def _occupy(executor: JobExecutor, pool: FarPool, nodes: int, folder: Path) -> None:
    """Run a job on each node at once, so that all of them are connected."""
    folder.mkdir()
    futures = [
        executor.submit(Job(function=_meet, args=(str(folder), number, nodes), pool=pool)) for number in range(nodes)
    ]
    for future in futures:
        future.result()


def _meet(folder: str, number: int, count: int) -> None:
    """Wait until so many of these run at once."""
    Path(folder, str(number)).touch()
    while len(os.listdir(folder)) < count:
        time.sleep(0.05)


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def _written_bytes() -> int:
    """Return how many bytes this process has sent to the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("write_bytes")))


def _size_of(database: Path) -> int:
    """Return the bytes of an SQLite database, those in its journal included."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    return int(pages * size)
