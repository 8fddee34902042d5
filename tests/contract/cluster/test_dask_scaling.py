"""Dask clusters that grow, shrink and lose their scheduler while jobs run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import distributed
import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import ClusterSettings, DaskSettings, Settings
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.dask_cluster import dask_cluster
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.chaos

AT_ONCE = RetryPolicy(retry_attempts=20, retry_delay=0.0, jitter=0.0)


def settings_of(address: str, **cluster: Any) -> Settings:
    return Settings(cluster=ClusterSettings(dask=DaskSettings(address=address), **cluster))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adaptive_cluster_grows_with_the_jobs_and_shrinks_without_them() -> None:
    """An adaptive cluster of no workers gets some for the jobs, and loses them when the leases are given back."""
    engine: Any = distributed
    options = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    with engine.LocalCluster(**options) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="200ms", wait_count=2)
        config = settings_of(cluster.scheduler_address, lease_idle=1.0)
        assert not cluster.scheduler_info["workers"]
        with JobExecutor(2, config=config) as executor:
            futures = [executor.submit(Job(function=time.sleep, args=(1.0,), pool="dask")) for _ in range(4)]
            for future in futures:
                future.result(timeout=PATIENCE)
            wait_for(lambda: not cluster.scheduler_info["workers"])
            executor.submit(Job(function=time.sleep, args=(0.1,), pool="dask")).result(timeout=PATIENCE)


def test_a_retired_worker_drains(tmp_path: Path, runs: Runs) -> None:
    """A worker that is retired gets no further jobs, and all jobs complete, none of them in two places at once."""
    with dask_cluster(tmp_path, workers=2, threads=1) as cluster:
        with JobExecutor(2, config=settings_of(cluster.address)) as executor:
            jobs = [
                Job(function=functions.note_times, args=(str(runs.folder), 0.5, number), pool="dask", retry=AT_ONCE)
                for number in range(12)
            ]
            futures = [executor.submit(job) for job in jobs]
            wait_for(lambda: sum(future.done() for future in futures) >= 2)
            retired = jobs[0].attempts[0].node
            with distributed.Client(cluster.address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
                client.retire_workers([retired], close_workers=True)  # type: ignore[no-untyped-call]
            for future in futures:
                future.result(timeout=PATIENCE)
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}
        last = max(jobs, key=lambda job: job.completed_at or 0)  # type: ignore[arg-type, return-value]
        assert last.attempts[-1].node != retired
        assert runs.overlaps() == []


def test_jobs_go_on_where_the_scheduler_is_replaced(tmp_path: Path) -> None:
    """When the scheduler dies with its workers, jobs are NODE_LOST, and run once another cluster is at its address."""
    with dask_cluster(tmp_path, workers=1, threads=1) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        with JobExecutor(1, config=settings_of(cluster.address)) as executor:
            policy = RetryPolicy(retry_attempts=20, retry_delay=0.5)
            job = Job(function=time.sleep, args=(3.0,), pool="dask", retry=policy)
            future = executor.submit(job)
            wait_for(future.running)
            cluster.stop()
            wait_for(lambda: job.attempts)
            assert job.attempts[0].error_code == "NODE_LOST"
            cluster.workers.clear()
            cluster.start_scheduler(port=port)
            cluster.start_worker(1)
            future.result(timeout=PATIENCE)
