from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.job.transition import Observer
from tests.contract.cluster.dask_cluster import DaskCluster, dask_cluster
from tests.contract.cluster.ray_cluster import RayCluster, ray_cluster
from tests.contract.cluster.sshd import SshServer, ssh_server
from tests.contract.functions import for_pool
from tests.waiting import PATIENCE


class MakeJob(Protocol):
    def __call__(self, function: Callable[..., Any], *args: Any, **fields: Any) -> Job: ...


class MakeExecutor(Protocol):
    def __call__(
        self, max_workers: int = 2, *, observers: tuple[Observer, ...] = (), **options: Any
    ) -> JobExecutor: ...


@pytest.fixture(scope="session")
def two_ssh_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An ssh server that answers under the names of two hosts."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="session")
def two_dask_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask cluster of two workers with two threads each."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def two_ray_nodes() -> Iterator[RayCluster]:
    """A Ray cluster of two nodes with two slots each."""
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(
    params=["coroutine", "thread", "process", pytest.param("process by spawn", marks=pytest.mark.nightly)]
    + [pytest.param(name, marks=pytest.mark.chaos) for name in ("ssh", "dask", "ray")]
)
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the pool under test; its executors start processes by the default method, or by spawn.

    The pools of clusters have two workers on each of two nodes. Spawned workers have daily tests in `spawned`.
    """
    name, _, method = str(request.param).partition(" by ")
    if method:
        monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", method)
    if name == "ssh":
        server: SshServer = request.getfixturevalue("two_ssh_hosts")
        monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__SSH", server.settings(slots=2))
    elif name == "dask":
        cluster: DaskCluster = request.getfixturevalue("two_dask_workers")
        monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__DASK", cluster.settings())
    elif name == "ray":
        nodes: RayCluster = request.getfixturevalue("two_ray_nodes")
        monkeypatch.setenv("EXECUTOR_ADAPTER_CLUSTER__RAY", nodes.settings())
    return name


@pytest.fixture
def make_job(pool: str) -> MakeJob:
    """Jobs of the pool under test, with retries that do not keep a test waiting."""

    def make(function: Callable[..., Any], *args: Any, **fields: Any) -> Job:
        settings = {"retry_delay": 0.01, "max_runtime": PATIENCE, "pool": pool} | fields
        return Job(function=for_pool(function, pool), args=args, **settings)

    return make


@pytest.fixture
def make_executor(request: pytest.FixtureRequest) -> Iterator[MakeExecutor]:
    if "pool" in request.fixturenames:
        request.getfixturevalue("pool")  # It sets what the settings of the executors are read from.
    made: list[JobExecutor] = []

    def make(max_workers: int = 2, **options: Any) -> JobExecutor:
        executor = JobExecutor(max_workers, config=Settings(), **options)
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown(timeout=0)


@pytest.fixture
def executor(make_executor: MakeExecutor) -> JobExecutor:
    return make_executor()
