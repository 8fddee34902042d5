"""Tests data that stays on a Dask cluster: futures as arguments, and results that are kept."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import distributed
import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import DaskSettings, Settings
from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.pools.cluster.engines import dask
from tests.contract.cluster import functions
from tests.contract.cluster.dask_cluster import DaskCluster, dask_cluster
from tests.contract.cluster.socket_bytes import bytes_by_socket, bytes_since
from tests.contract.cluster.sshd import SshServer
from tests.contract.conftest import MakeExecutor
from tests.waiting import wait_for

SIZE = 50_000_000
MOST_BYTES = SIZE // 20
"""Bytes that all connections of this program may carry, whatever the stages pass on. Dask's own are among them, by
which its scheduler is asked twice a second who waits: the longer it takes, the more."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers with one thread each."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), workers=2, threads=1) as made:
        yield made


@contextlib.contextmanager
def client_of(cluster: DaskCluster) -> Iterator[Any]:
    """Connect this program to a cluster as its own client, the default one."""
    with distributed.Client(cluster.address) as client:  # type: ignore[no-untyped-call]
        yield client


def executor_at(cluster: DaskCluster) -> JobExecutor:
    return JobExecutor(2, config=Settings(), address=cluster.address)


def kept(function: Any, *args: Any) -> Job:
    return Job(function=function, args=args, pool="dask", keep=True)


def test_data_goes_from_stage_to_stage_on_the_cluster(cluster: DaskCluster) -> None:
    """Futures of Dask's and kept results are arguments of jobs, and their data does not pass through the program.

    A kept result is a Dask future of the program's own client, and the data is freed with it.
    """
    with client_of(cluster) as client, executor_at(cluster) as executor:
        executor.run(Job(function=operator.add, args=(1, 2), pool="dask"))
        before = bytes_by_socket()
        data = client.submit(functions.zeros, SIZE, pure=False)
        distributed.wait(data)  # type: ignore[no-untyped-call]
        for _ in range(4):
            data = executor.run(kept(functions.reversed_bytes, data))
        assert data.client is client
        assert executor.run(
            Job(function=functions.sizes_of, args=([data, b"1"],), kwargs={"more": data}, pool="dask")
        ) == [
            SIZE,
            1,
            SIZE,
        ]
        assert 0 < bytes_since(before) < MOST_BYTES
        assert client.submit(len, data).result() == SIZE
        assert len(data.result()) == SIZE
        del data
        wait_for(lambda: not any(client.run(_kept_keys).values()))


def _kept_keys(dask_worker: Any) -> list[str]:
    return [key for key in dask_worker.data if str(key).startswith("executor-adapter")]


def test_a_reference_to_nothing_is_named_in_one_line(cluster: DaskCluster) -> None:
    """A future that has no data, or whose data was lost with its worker, ends the job in words; none hangs."""
    with client_of(cluster) as client, executor_at(cluster) as executor:
        pending = client.submit(time.sleep, 2)
        with pytest.raises(InvalidJobError, match="argument 1 is a Dask future that is pending, not finished: wait"):
            executor.submit(Job(function=len, args=(pending,), pool="dask"))
        failed = client.submit(operator.truediv, 1, 0)
        distributed.wait(failed)  # type: ignore[no-untyped-call]
        with pytest.raises(InvalidJobError, match="argument 'x' is a Dask future that is error, not finished"):
            executor.submit(Job(function=len, kwargs={"x": failed}, pool="dask"))
        result = executor.run(kept(functions.zeros, 1_000_000))
        (holder,) = (name for name, keys in client.run(_kept_keys).items() if keys)
        client.run(_drop_kept, workers=[holder])
        with pytest.raises(JobSerializationError, match=r"argument 1, the Dask future executor-adapter-.*cannot be"):
            executor.run(Job(function=len, args=(result,), pool="dask", retry_attempts=0))


def test_an_answer_that_was_lost_with_its_worker_is_not_waited_for(cluster: DaskCluster) -> None:
    """Where the result of a lease is gone, the lease ends without a reason, and the engine's thread goes on."""
    ended: dict[int, str] = {}
    ends: Any = SimpleNamespace(lease_ended=lambda lease, why: ended.update({lease: why}))
    engine = dask.DaskCluster(ends, DaskSettings(address=cluster.address), 1, dict, "")
    with client_of(cluster) as client:
        answer = client.submit(str, "it was asked to end", key="executor-adapter-lease")
        distributed.wait(answer)  # type: ignore[no-untyped-call]
        engine.note_end(1, answer)
        client.run(_drop_kept)
        engine.note_end(2, answer)
    assert ended == {1: "it was asked to end", 2: ""}


def _drop_kept(dask_worker: Any) -> None:
    for key in _kept_keys(dask_worker):
        del dask_worker.data[key]


def test_a_local_cluster_keeps_results_too(make_executor: MakeExecutor) -> None:
    """On the local cluster that pool="dask" starts without an address, stages pass data on in the same way."""
    executor = make_executor(1)
    data = executor.run(kept(functions.zeros, 3_000_000))
    assert isinstance(data, distributed.Future)
    assert executor.run(Job(function=functions.size_of, args=(data,), pool="dask")) == 3_000_000


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_on_one_machine_a_kept_result_is_the_value(make_executor: MakeExecutor, pool: Any) -> None:
    """Pools of this machine return the value itself, so that a chain of stages runs on either."""
    assert make_executor().run(Job(function=functions.zeros, args=(3,), pool=pool, keep=True)) == bytes(3)


def test_a_pool_without_a_place_for_results_refuses_to_keep_one(two_ssh_hosts: SshServer, monkeypatch: Any) -> None:
    """On ssh hosts, keep=True is refused at submit."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__SSH", two_ssh_hosts.settings(slots=1))
    with (
        JobExecutor(1, config=Settings()) as executor,
        pytest.raises(InvalidJobError, match="keep=True: pool='ssh' has no place where a result stays"),
    ):
        executor.submit(Job(function=functions.zeros, args=(3,), pool="ssh", keep=True))


def test_a_job_on_a_node_reads_the_settings(make_executor: MakeExecutor) -> None:
    """What the environment of a node's worker has for data is not taken for a setting."""
    assert make_executor(1).run(Job(function=functions.read_settings, pool="dask")) == Settings().executor.start_method
