"""The head of a cluster restarts while jobs run: Dask's scheduler, and Ray's control store with and without Redis."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, Transition
from executor_adapter.config import ClusterSettings, DaskSettings, RaySettings, Settings
from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.job import PoolName
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.dask_cluster import dask_cluster
from tests.contract.cluster.ray_cluster import REDIS, RayClusterApart, control_store_in_redis, ray_cluster
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.chaos

POLICY = RetryPolicy(retry_attempts=50, retry_delay=0.2, jitter=0.0)
JOBS = 30
RUN_SECONDS = 0.5
RAY_LIMIT = 62.0
"""Seconds after which Ray has ended a program that is still connected to a cluster without a control store."""


class Ends:
    """Counts the final states of each job."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def observe(self, transition: Transition) -> None:
        if transition.status.is_terminal:
            self.counts[transition.job.job_id] += 1


def jobs_of(pool: PoolName, runs: Runs) -> list[Job]:
    return [job_of(pool, runs, n) for n in range(JOBS)]


def job_of(pool: PoolName, runs: Runs, number: int) -> Job:
    return Job(function=functions.note_times, args=(str(runs.folder), RUN_SECONDS, number), pool=pool, retry=POLICY)


def check(jobs: list[Job], ends: Ends, runs: Runs) -> None:
    """Check that each job has completed once, and has never run in two places at once."""
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert ends.counts == {job.job_id: 1 for job in jobs}
    assert runs.overlaps() == []
    assert {attempt.error_code for job in jobs for attempt in job.attempts} <= {None, "NODE_LOST"}


@pytest.fixture
def _redis() -> Iterator[None]:
    try:
        socket.create_connection(tuple(REDIS.split(":")), timeout=2).close()  # type: ignore[arg-type]
    except OSError as error:
        pytest.skip(f"no Redis ({error}): start it on {REDIS}")
    with control_store_in_redis():
        yield


@pytest.mark.usefixtures("_redis")
def test_jobs_go_on_while_the_control_store_of_ray_restarts(runs: Runs) -> None:
    """Attempts go on while it is away; leases that are lost meanwhile are asked for again when it is back."""
    ends = Ends()
    with ray_cluster(nodes=2, cpus=1) as cluster:
        config = Settings(cluster=ClusterSettings(ray=RaySettings(address=cluster.address)))
        with JobExecutor(2, config=config, observers=[ends.observe]) as executor:
            jobs = jobs_of("ray", runs)
            futures = [executor.submit(job) for job in jobs]
            wait_for(lambda: len(set(runs.agents())) == 2 and sum(map(_done, jobs)) >= 4)
            cluster.stop_head()
            before = sum(map(_done, jobs))
            wait_for(lambda: sum(map(_done, jobs)) >= before + 4)
            assert not [attempt for job in jobs for attempt in job.attempts if attempt.error_code]
            os.kill(runs.agents()[-1], signal.SIGKILL)
            wait_for(lambda: any(attempt.error_code for job in jobs for attempt in job.attempts))
            cluster.start_head()

            def has_a_third_agent() -> bool:
                if sum(map(_done, jobs)) > len(jobs) - 4:  # Without jobs that wait no agent is asked for.
                    jobs.append(job_of("ray", runs, len(jobs)))
                    futures.append(executor.submit(jobs[-1]))
                return len(set(runs.agents())) == 3

            wait_for(has_a_third_agent)
            for future in futures:
                future.result(timeout=PATIENCE)
        check(jobs, ends, runs)
        lost = [attempt for job in jobs for attempt in job.attempts if attempt.error_code]
        assert len(lost) == 1


def _done(job: Job) -> bool:
    return job.status.is_terminal


@pytest.fixture
def ray_clusters() -> Iterator[Callable[..., RayClusterApart]]:
    """Clusters that a test may start; all are ended with it."""
    with contextlib.ExitStack() as stack:

        def start(port: int = 0) -> RayClusterApart:
            cluster = RayClusterApart(port)
            stack.callback(cluster.stop)
            return cluster

        yield start


def test_the_end_of_a_ray_cluster_does_not_end_the_program(
    ray_clusters: Callable[..., RayClusterApart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis, a dead control store ends the cluster: the program leaves it, before Ray ends the program.

    What runs goes on, what waits fails in words, jobs of other pools go on, and another cluster at the address is used.
    """
    import ray

    monkeypatch.setattr("executor_adapter.pools.cluster.engines.ray_connection.LOST_SHARE", 0.1)
    cluster = ray_clusters()
    config = Settings(cluster=ClusterSettings(ray=RaySettings(address=cluster.address), node_timeout=20.0))
    with JobExecutor(1, config=config) as executor:
        executor.submit(Job(function="os:getpid", pool="ray", retry=POLICY)).result(timeout=PATIENCE)
        running = executor.submit(Job(function=functions.work, args=(1, 3.0), pool="ray", retry=POLICY))
        wait_for(running.running)
        cluster.stop_head()
        died_at = time.monotonic()
        assert running.result(timeout=PATIENCE) == 1
        assert len(running.job.attempts) == 1
        wait_for(lambda: not ray.is_initialized())
        cluster.stop()
        with pytest.raises(WorkerUnavailableError, match="nothing answers at"):
            executor.submit(Job(function="os:getpid", pool="ray", retry_attempts=0)).result(timeout=PATIENCE)
        assert executor.run(Job(function="os:getpid", pool="process"))
        time.sleep(max(0.0, died_at + RAY_LIMIT - time.monotonic()))
        ray_clusters(int(cluster.address.rpartition(":")[2]))
        late = executor.submit(Job(function=functions.work, args=(2, 0.0), pool="ray", retry=POLICY))
        assert late.result(timeout=PATIENCE) == 2


def test_nothing_is_lost_where_the_scheduler_of_dask_restarts(runs: Runs, tmp_path: Path) -> None:
    """Workers of Dask end with their scheduler, so what ran is NODE_LOST: it runs again, once, on the new ones."""
    ends = Ends()
    with dask_cluster(tmp_path, workers=2, threads=1) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        config = Settings(cluster=ClusterSettings(dask=DaskSettings(address=cluster.address)))
        with JobExecutor(2, config=config, observers=[ends.observe]) as executor:
            jobs = jobs_of("dask", runs)
            futures = [executor.submit(job) for job in jobs]
            wait_for(lambda: len(set(runs.agents())) == 2 and sum(map(_done, jobs)) >= 4)
            cluster.stop_scheduler()
            cluster.start_scheduler(port=port)
            for worker in cluster.workers:
                worker.wait(PATIENCE)
            for _ in range(2):
                cluster.start_worker(1)
            for future in futures:
                future.result(timeout=PATIENCE)
    check(jobs, ends, runs)
