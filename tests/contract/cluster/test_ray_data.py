"""Tests data that stays on a Ray cluster: ObjectRefs as arguments, and results that are kept."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture
from executor_adapter.config import ClusterSettings, RaySettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.pools.cluster.engines.ray import RayCluster as Client
from executor_adapter.pools.cluster.pool import RemotePool
from tests.contract.cluster import functions
from tests.contract.cluster.ray_cluster import RayCluster
from tests.contract.cluster.socket_bytes import bytes_by_socket, bytes_since
from tests.insides import supervisor_of
from tests.waiting import wait_for

pytestmark = pytest.mark.chaos

SIZE = 50_000_000
STORE = "object_store_memory"
"""What Ray calls the memory of a node for data."""
MOST_BYTES = SIZE // 20
"""Bytes that all connections of this program may carry, whatever the stages pass on. Ray's own are among them, by
which it is asked twice a second who waits: the longer it takes, the more."""


def executor_at(cluster: RayCluster, lease_idle: float = 10.0, max_workers: int = 2) -> JobExecutor:
    settings = ClusterSettings(ray=RaySettings(address=cluster.address), lease_idle=lease_idle)
    return JobExecutor(max_workers, config=Settings(cluster=settings))


def test_data_goes_from_stage_to_stage_on_the_cluster(two_ray_nodes: RayCluster) -> None:
    """ObjectRefs and kept results are arguments of jobs, and their data does not pass through the program.

    A kept result is an ObjectRef that Ray's own tasks take too.
    """
    import ray

    with executor_at(two_ray_nodes) as executor:
        assert executor.run(Job(function=operator.add, args=(1, 2), pool="ray")) == 3
        before = bytes_by_socket()
        data = ray.remote(functions.zeros).remote(SIZE)
        ray.wait([data], fetch_local=False)
        for _ in range(4):
            data = executor.run(Job(function=functions.reversed_bytes, args=(data,), pool="ray", keep=True))
            assert isinstance(data, ray.ObjectRef)
        sizes = Job(function=functions.sizes_of, args=([data, b"1"],), kwargs={"more": data}, pool="ray")
        assert executor.run(sizes) == [SIZE, 1, SIZE]
        assert 0 < bytes_since(before) < MOST_BYTES
        assert ray.get(ray.remote(functions.size_of).remote(data)) == SIZE


def test_a_result_is_kept_though_the_lease_of_its_job_goes_back(two_ray_nodes: RayCluster) -> None:
    """A result that takes longer to be stored than an unused lease is kept is there all the same."""
    import ray

    size = 400_000_000  # More than the store of a node holds in memory.
    with executor_at(two_ray_nodes, lease_idle=0.1) as executor:
        data = executor.run(Job(function=functions.zeros, args=(size,), pool="ray", keep=True))
        assert ray.get(ray.remote(functions.size_of).remote(data)) == size


def keep_zeros(executor: JobExecutor) -> JobFuture[Any]:
    """Return the future of a result that is kept, and that nobody has read."""
    future = executor.submit(Job(function=functions.zeros, args=(SIZE,), pool="ray", keep=True))
    wait_for(future.done)
    return future


def test_a_result_is_read_after_the_lease_of_its_job_has_gone_back(two_ray_nodes: RayCluster) -> None:
    """A kept result that nobody has read when its agent ends, since it is idle, is there all the same."""
    with executor_at(two_ray_nodes, lease_idle=0.1) as executor:
        unread = keep_zeros(executor)
        pool = supervisor_of(executor).pools.made["ray"]
        assert isinstance(pool, RemotePool)
        wait_for(lambda: not pool.agents)
        # The engine's thread has heard of that before it asks for the lease of this job.
        executor.run(Job(function=operator.add, args=(1, 2), pool="ray"))
        assert executor.run(Job(function=functions.size_of, args=(unread.result(),), pool="ray")) == SIZE


def test_a_result_outlives_its_executor_on_a_connection_of_the_program_s_own(two_ray_nodes: RayCluster) -> None:
    """A kept result lives as long as the connection to Ray, whether or not it was read before the executor closed."""
    import ray

    ray.init(two_ray_nodes.address, log_to_driver=False, configure_logging=False)
    try:
        with executor_at(two_ray_nodes) as executor:
            unread = keep_zeros(executor)
        assert ray.get(ray.remote(functions.size_of).remote(unread.result())) == SIZE
    finally:
        ray.shutdown()


def test_a_result_that_nobody_reads_is_freed_with_its_future(two_ray_nodes: RayCluster) -> None:
    """The data of a kept result is in Ray's store for as long as the program has the future of the job."""
    with executor_at(two_ray_nodes) as executor:
        unread = keep_zeros(executor)
        wait_for(lambda: bytes_in_store() >= SIZE)
        del unread
        wait_for(lambda: bytes_in_store() < SIZE)


def test_the_data_of_a_job_that_has_not_begun_is_freed_with_its_reference(
    two_ray_nodes: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ObjectRef that was lent to a node for a job which came back from there is not held there any longer."""
    import ray

    lent: list[object] = []
    lend = Client.lend
    monkeypatch.setattr(Client, "lend", lambda *args: (lent.append(args), lend(*args)))
    gate = tmp_path / "gate"
    gate.touch()
    with executor_at(two_ray_nodes, max_workers=1) as executor:
        many = executor.map(functions.size_once_there, [str(gate)] * 50, [b"1"] * 50, pool="ray")
        assert {result.value for result in many} == {1}, "the function is known to be short now"
        gate.unlink()
        data = ray.put(bytes(SIZE))
        wait_for(lambda: bytes_in_store() >= SIZE)
        running, behind = (
            executor.submit(Job(function=functions.size_once_there, args=(str(gate), value), pool="ray"))
            for value in (b"1", data)
        )
        wait_for(lambda: bool(lent))
        lent.clear()
        assert behind.cancel()
        del data, behind
        wait_for(lambda: bytes_in_store() < SIZE)
        gate.touch()
        assert running.result() == 1


def bytes_in_store() -> float:
    """Return how much data there is in the memory of all nodes."""
    import ray

    return ray.cluster_resources()[STORE] - ray.available_resources().get(STORE, 0.0)


def test_a_reference_to_nothing_is_named_in_one_line(two_ray_nodes: RayCluster) -> None:
    """An ObjectRef that is not ready is refused, and one whose task has failed ends the job in words."""
    import ray

    with executor_at(two_ray_nodes) as executor:
        executor.run(Job(function=operator.add, args=(1, 2), pool="ray"))
        pending = ray.remote(functions.work).remote(1, 3.0)
        with pytest.raises(InvalidJobError, match="argument 1 is an ObjectRef that is not ready: wait for it first"):
            executor.submit(Job(function=len, args=(pending,), pool="ray"))
        failed = ray.remote(functions.size_of).remote(1)
        ray.wait([failed])
        with pytest.raises(
            JobSerializationError,
            match=r"argument 'value', the ObjectRef \w+, cannot be fetched: its task has failed: TypeError",
        ):
            executor.run(Job(function=functions.size_of, kwargs={"value": failed}, pool="ray", retry_attempts=0))
