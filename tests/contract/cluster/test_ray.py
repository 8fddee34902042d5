"""Tests jobs on a real Ray cluster: leases, lost nodes, and a cluster that is started on demand."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import ClusterSettings, RaySettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobTimeoutError
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.ray_cluster import RayCluster, ray_cluster
from tests.contract.conftest import wait_for
from tests.insides import supervisor_of

AT_ONCE = RetryPolicy(retry_delay=0.0, jitter=0.0)


def executor_of(cluster: RayCluster, max_workers: int, **settings: float) -> JobExecutor:
    ray = RaySettings(**json.loads(cluster.settings()))
    return JobExecutor(max_workers, config=Settings(cluster=ClusterSettings(ray=ray, **settings)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster of two nodes with one slot each; tests may remove nodes and start others."""
    with ray_cluster(nodes=2, cpus=1) as made:
        yield made


def agents_of(executor: JobExecutor) -> list[RemoteAgent]:
    pool = supervisor_of(executor).pools.made["ray"]
    assert isinstance(pool, RemotePool)
    return pool.agents


def test_leases_are_asked_for_and_given_back(cluster: RayCluster, tmp_path: Path) -> None:
    """Jobs run on both nodes within their limits; leases that are idle go back, and later jobs get new ones."""
    with executor_of(cluster, 2, lease_idle=0.5) as executor:
        gate = tmp_path / "gate"
        both = [executor.submit(Job(function=functions.wait_for_file, args=(str(gate),), pool="ray")) for _ in range(2)]
        wait_for(lambda: all(future.job.status is JobStatus.RUNNING for future in both), seconds=60)
        gate.touch()
        for future in both:
            future.result(timeout=30)
        assert len({future.job.attempts[0].node for future in both}) == 2
        late = Job(function=time.sleep, args=(30,), pool="ray", max_runtime=0.3, retry_attempts=0)
        with pytest.raises(JobTimeoutError):
            executor.submit(late).result(timeout=20)
        many = executor.map(functions.size_of, [bytes(size) for size in range(300)], pool="ray")
        assert [result.value for result in many] == list(range(300))
        wait_for(lambda: not agents_of(executor), seconds=20)
        assert executor.run(Job(function=functions.size_of, args=(b"again",), pool="ray")) == 5


@pytest.mark.chaos
def test_the_jobs_of_a_lost_node_run_again_and_once_each(cluster: RayCluster, runs: Runs) -> None:
    """The running job of a removed node is NODE_LOST and retried once nothing of it is alive; the others complete."""
    with executor_of(cluster, 2) as executor:
        fields = {"args": (str(runs.folder), 2.0), "pool": "ray", "retry": AT_ONCE}
        jobs = [Job(function=functions.note_times, **fields) for _ in range(3)]
        futures = [executor.submit(job) for job in jobs]
        wait_for(lambda: len(runs.agents()) == 2, seconds=60)
        address = jobs[0].live.assignment.node
        victim = next(node for node in cluster.nodes if node.node_id.startswith(address.rpartition("/")[2]))
        cluster.remove_node(victim)
        cluster.add_node(1)
        for future in futures:
            future.result(timeout=60)
    codes = [[attempt.error_code for attempt in job.attempts] for job in jobs]
    assert codes == [["NODE_LOST", None], [None], [None]]
    first, *_, retried = sorted(runs.spans())
    assert retried[0] > first[1]


@pytest.mark.chaos
def test_a_killed_agent_is_replaced(cluster: RayCluster, runs: Runs) -> None:
    """An agent that was killed, or stopped, is lost with what it ran; another one is started on its node."""
    with executor_of(cluster, 1, lost_after=2.0) as executor:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            seen = len(runs.agents())
            job = Job(function=functions.note_times, args=(str(runs.folder), 6.0), pool="ray", retry=AT_ONCE)
            future = executor.submit(job)
            wait_for(lambda seen=seen: len(runs.agents()) > seen, seconds=60)  # type: ignore[misc]
            os.kill(runs.agents()[-1], number)
            future.result(timeout=60)
            assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
            lost, again = runs.spans()[-2:]
            assert again[0] > lost[1]


@pytest.mark.chaos
def test_without_an_address_a_local_cluster_is_started() -> None:
    """pool="ray" without an address runs on a cluster that ends with the executor."""
    import ray

    with JobExecutor(2, config=Settings()) as executor:
        job = Job(function="os:getpid", pool="ray")
        executor.submit(job).result(timeout=60)
        assert ray.cluster_resources()["CPU"] == 2
    assert not ray.is_initialized()
    assert job.attempts[0].pool == "ray"


def test_without_ray_a_job_is_refused_with_the_command_that_installs_it(mocker: MockerFixture) -> None:
    """Where the extra is missing, a job with pool="ray" is refused at submit."""
    mocker.patch("executor_adapter.executor.pool_factory.is_installed", return_value=False)
    with JobExecutor(1, config=Settings()) as executor:
        with pytest.raises(InvalidJobError, match=r"pip install 'prefect-executor-adapter\[ray\]'"):
            executor.submit(Job(function="os:getpid", pool="ray"))
