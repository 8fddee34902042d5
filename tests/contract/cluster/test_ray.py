"""Tests jobs on a real Ray cluster: leases, lost nodes, and a cluster that is started on demand."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy
from executor_adapter.cli.checks import check_cluster
from executor_adapter.config import ClusterSettings, RaySettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobTimeoutError, WorkerUnavailableError
from executor_adapter.monitoring import Finding, Level
from executor_adapter.pools.cluster.descriptions import describe_node
from executor_adapter.pools.cluster.engines.ray_connection import is_same
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.hosts import full_port
from tests.contract.cluster.ray_cluster import RayCluster, ray_cluster
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

AT_ONCE = RetryPolicy(retry_delay=0.0, jitter=0.0)


def executor_of(cluster: RayCluster, max_workers: int, **settings: Any) -> JobExecutor:
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
        both = run_on_both_nodes(executor, tmp_path)
        assert len({future.job.attempts[0].node for future in both}) == 2
        late = Job(function=time.sleep, args=(30,), pool="ray", max_runtime=0.3, retry_attempts=0)
        with pytest.raises(JobTimeoutError):
            executor.submit(late).result(timeout=PATIENCE)
        many = executor.map(functions.size_of, [bytes(size) for size in range(300)], pool="ray")
        assert [result.value for result in many] == list(range(300))
        wait_for(lambda: not agents_of(executor))
        assert executor.run(Job(function=functions.size_of, args=(b"again",), pool="ray")) == 5


def run_on_both_nodes(executor: JobExecutor, folder: Path) -> list[JobFuture]:
    """Run two jobs at once, so that both nodes have an agent; return their futures."""
    gate = folder / "gate"
    both = [executor.submit(Job(function=functions.wait_for_file, args=(str(gate),), pool="ray")) for _ in range(2)]
    wait_for(lambda: all(future.job.status is JobStatus.RUNNING for future in both))
    gate.touch()
    for future in both:
        future.result(timeout=PATIENCE)
    return both


@pytest.mark.nightly
def test_a_link_goes_through_the_cluster_where_a_node_does_not_reach_the_program(
    cluster: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes that cannot connect to the program run its jobs, large values too, and it is said which they are."""
    with full_port("127.0.0.1") as unreachable, executor_of(cluster, 2, advertise=unreachable) as executor:
        both = run_on_both_nodes(executor, tmp_path)
        sizes = [executor.submit(Job(function=functions.size_of, args=(bytes(9_000_000),), pool="ray")) for _ in both]
        assert [size.result(timeout=PATIENCE) for size in sizes] == [9_000_000] * 2
    for future in both:
        node = future.job.attempts[0].node
        assert f"node {node} does not reach this program: its link goes through the Ray cluster" in caplog.messages


@pytest.mark.chaos
def test_the_jobs_of_a_lost_node_run_again_and_once_each(cluster: RayCluster, runs: Runs, tmp_path: Path) -> None:
    """The running job of a removed node is NODE_LOST and retried once nothing of it is alive; the others complete."""
    with executor_of(cluster, 2) as executor:
        run_on_both_nodes(executor, tmp_path)
        noted = [(str(runs.folder), 5.0, number) for number in range(3)]
        jobs = [Job(function=functions.note_times, args=args, pool="ray", retry=AT_ONCE) for args in noted]
        futures = [executor.submit(job) for job in jobs]
        wait_for(lambda: len(runs.agents()) >= 2)
        lost = next(job for job in jobs if job.status is JobStatus.RUNNING)
        address = lost.live.assignment.node
        victim = next(node for node in cluster.nodes if node.node_id.startswith(address.rpartition("/")[2]))
        cluster.remove_node(victim)
        cluster.add_node(1)
        for future in futures:
            future.result(timeout=PATIENCE)
    for job in jobs:
        assert [attempt.error_code for attempt in job.attempts] == (["NODE_LOST", None] if job is lost else [None])
    assert len(runs.spans()) == 4
    assert runs.overlaps() == []


@pytest.mark.chaos
def test_a_killed_agent_is_replaced(cluster: RayCluster, runs: Runs) -> None:
    """An agent that was killed, or stopped, is lost with what it ran; another one is started on its node."""
    with executor_of(cluster, 1, lost_after=2.0) as executor:
        for number in (signal.SIGKILL, signal.SIGSTOP):
            seen = len(runs.agents())
            job = Job(function=functions.note_times, args=(str(runs.folder), 6.0), pool="ray", retry=AT_ONCE)
            future = executor.submit(job)
            wait_for(lambda seen=seen: len(runs.agents()) > seen)  # type: ignore[misc]
            os.kill(runs.agents()[-1], number)
            future.result(timeout=PATIENCE)
            assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
            lost, again = runs.spans()[-2:]
            assert again[0] > lost[1]


def test_without_ray_a_job_is_refused_with_the_command_that_installs_it(mocker: MockerFixture) -> None:
    """Where the extra is missing, a job with pool="ray" is refused at submit."""
    mocker.patch("executor_adapter.executor.defaults.is_installed", return_value=False)
    with JobExecutor(1, config=Settings()) as executor:
        with pytest.raises(InvalidJobError, match=r"pip install 'prefect-executor-adapter\[ray\]'"):
            executor.submit(Job(function="os:getpid", pool="ray"))


@pytest.mark.chaos
def test_doctor_asks_the_nodes(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of `doctor` find nodes fine that are like this machine, and say what keeps jobs from others."""
    import ray

    # Ray holds a node that an earlier test has removed to be alive for some seconds.
    wait_for(lambda: cluster.count_nodes() == 1 + len(cluster.nodes))
    nodes = list(check_at(cluster.address))
    assert len(nodes) == 1 + len(cluster.nodes), "the head is a node too"
    assert [found.found for found in nodes if found.level is not Level.FINE] == []
    for describe, level, expected in (
        (lambda *_: importlib.import_module("nowhere"), Level.WRONG, "ModuleNotFoundError: No module named 'nowhere'"),
        (lambda host, _, package: describe_node(host, 1, package), Level.WARNING, "it cannot reach .*refused"),
    ):
        monkeypatch.setattr("executor_adapter.pools.cluster.descriptions.describe_node", describe)
        for found in check_at(cluster.address):
            assert found.level is level
            assert re.match(expected, found.found)
    assert not ray.is_initialized()


def test_doctor_says_at_once_that_there_is_no_ray_cluster() -> None:
    """An address at which nothing listens is found wrong before Ray tries it for minutes."""
    (closed,) = check_at("127.0.0.1:1")
    assert (closed.level, closed.found) == (Level.WRONG, "nothing answers at 127.0.0.1:1: Connection refused")


def check_at(address: str) -> Iterator[Finding]:
    return check_cluster(ClusterSettings(ray=RaySettings(address=address)))


# --- one connection for all of a program ---


@pytest.mark.chaos
def test_a_connection_of_the_program_s_own_is_used_and_left_as_it_is(cluster: RayCluster) -> None:
    """Jobs run where the program is connected itself, which stays so; another address is refused in one line."""
    import ray

    with connected_to(cluster):
        for address in (None, cluster.address, "auto"):
            with executor_at(address) as executor:
                assert executor.submit(Job(function=functions.size_of, args=(b"1",), pool="ray")).result(PATIENCE) == 1
            assert ray.is_initialized()
        with executor_at("192.0.2.1:6379") as executor:
            future = executor.submit(Job(function="os:getpid", pool="ray", retry_attempts=0))
            with pytest.raises(WorkerUnavailableError, match=f"connected to the Ray cluster at {cluster.address}"):
                future.result(timeout=PATIENCE)
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.chaos
def test_jobs_go_on_after_the_program_has_ended_its_connection(
    cluster: RayCluster, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the program ends the connection that jobs use, they are NODE_LOST, and run again by a new connection.

    It ends between two calls to Ray, as it mostly does: Ray itself ends a program that calls it at that very moment.
    """
    import ray

    from executor_adapter.pools.cluster.engines.ray import RayCluster as Client

    poll, ended = Client.poll, []

    def end_the_connection(client: Client) -> float | None:
        if runs.agents() and not ended:
            ended.append(ray.shutdown())
        return poll(client)

    monkeypatch.setattr(Client, "poll", end_the_connection)
    with connected_to(cluster), executor_of(cluster, 1) as executor:
        job = Job(function=functions.note_times, args=(str(runs.folder), 3.0), pool="ray", retry=AT_ONCE)
        executor.submit(job).result(timeout=PATIENCE)
        assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
        assert str(ray.get_runtime_context().gcs_address) == cluster.address
    assert not ray.is_initialized()


@contextlib.contextmanager
def connected_to(cluster: RayCluster) -> Iterator[None]:
    """Connect this program to a cluster itself."""
    import ray

    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def executor_at(address: str | None) -> JobExecutor:
    return JobExecutor(1, config=Settings(cluster=ClusterSettings(ray=RaySettings(address=address))))


@pytest.mark.parametrize(
    ("address", "connected", "expected"),
    [
        ("127.0.0.1:6379", "127.0.0.1:6379", True),
        ("localhost:6379", "127.0.0.1:6379", True),
        ("127.0.0.1:6379", "127.0.0.1:6380", False),
        ("192.0.2.1:6379", "127.0.0.1:6379", False),
        ("auto", "192.0.2.1:6379", True),
    ],
)
def test_two_addresses_are_the_same_where_both_lead_to_one_port(address: str, connected: str, expected: bool) -> None:
    """An address of the settings is compared with that of the connection by what its name leads to."""
    assert is_same(address, connected) is expected


# --- a local cluster ---
# These come last: Ray starts no actor on an older cluster of a program that has started and ended a local one since.


@pytest.mark.chaos
def test_without_an_address_a_local_cluster_is_started() -> None:
    """pool="ray" without an address runs on a cluster that has the executor's capacity and ends with the executor."""
    import ray

    with JobExecutor(2, config=Settings(), capacity={"CPU": 3, "license": 1}) as executor:
        job = Job(function="os:getpid", pool="ray", resources={"license": 1})
        executor.submit(job).result(timeout=PATIENCE)
        assert (ray.cluster_resources()["CPU"], ray.cluster_resources()["license"]) == (3, 1)
    assert not ray.is_initialized()
    assert job.attempts[0].pool == "ray"


@pytest.mark.chaos
def test_two_executors_share_one_connection_until_the_last_one_closes() -> None:
    """The executor that started the local cluster closes first: jobs of the other one go on, then Ray is left."""
    import ray

    with JobExecutor(2, config=Settings()) as second:
        with JobExecutor(1, config=Settings()) as first:
            first.submit(Job(function="os:getpid", pool="ray")).result(timeout=PATIENCE)
            before = second.submit(Job(function=time.sleep, args=(2,), pool="ray"))
            wait_for(before.running)
        before.result(timeout=PATIENCE)
        assert len(before.job.attempts) == 1
        after = [second.submit(Job(function=time.sleep, args=(0.2,), pool="ray")) for _ in range(4)]
        for future in after:
            future.result(timeout=PATIENCE)
    assert not ray.is_initialized()
