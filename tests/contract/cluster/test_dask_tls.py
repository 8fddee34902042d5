"""Tests jobs on a Dask cluster whose connections use TLS, and the connections that are refused there."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ClusterSettings, DaskSettings, Settings
from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.cluster.engines import leases
from executor_adapter.pools.cluster.handshake import Door, prove
from executor_adapter.pools.cluster.link import tls_context
from tests.contract.cluster import functions
from tests.contract.cluster.certificates import Authority
from tests.contract.cluster.dask_cluster import DaskCluster, dask_cluster
from tests.contract.cluster.hosts import full_port
from tests.insides import plain_loop
from tests.waiting import PATIENCE, wait_for

LARGE = 9_000_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def cluster(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of one worker with two threads, whose connections use TLS."""
    folder = tmp_path_factory.mktemp("dask")
    with dask_cluster(folder, 1, options=authority.dask_options(), security=security_of(authority)) as made:
        assert made.address.startswith("tls://")
        yield made


def security_of(authority: Authority) -> Any:
    make: Any = distributed.Security
    return make(
        tls_ca_file=authority.ca_file,
        tls_client_cert=authority.cert,
        tls_client_key=authority.key,
        require_encryption=True,
    )


def executor_of(cluster: DaskCluster, **settings: Any) -> JobExecutor:
    dask_settings = DaskSettings(address=cluster.address)
    return JobExecutor(2, config=Settings(cluster=ClusterSettings(dask=dask_settings, node_timeout=200.0, **settings)))


def run_jobs(cluster: DaskCluster, **settings: Any) -> None:
    """Run short jobs, and some with large arguments and results, at once."""
    with executor_of(cluster, **settings) as executor:
        large = [
            executor.submit(Job(function=functions.reversed_bytes, args=(bytes(LARGE + each),), pool="dask"))
            for each in range(2)
        ]
        many = executor.map(functions.size_of, [bytes(size) for size in range(100)], pool="dask")
        assert [result.value for result in many] == list(range(100))
        assert [len(future.result(timeout=PATIENCE)) for future in large] == [LARGE, LARGE + 1]


def test_the_link_uses_the_certificates_of_dask_s_configuration(
    cluster: DaskCluster, authority: Authority, mocker: MockerFixture
) -> None:
    """Jobs run on a cluster with TLS, and the connection of the agent is encrypted by it, too."""
    ends = mocker.spy(leases, "end_of")
    with dask.config.set(authority.dask_configuration()):
        run_jobs(cluster)
    assert {type(call.args[0]) for call in ends.call_args_list} == {ssl.SSLSocket}


@pytest.mark.nightly
def test_a_link_that_goes_through_the_cluster_uses_them_too(
    cluster: DaskCluster, authority: Authority, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the worker does not reach the program, the relay carries what is encrypted by agent and program."""
    ends = mocker.spy(leases, "end_of")
    with full_port("127.0.0.1") as unreachable, dask.config.set(authority.dask_configuration()):
        run_jobs(cluster, advertise=unreachable)
    assert "does not reach this program: its link goes through the Dask cluster" in caplog.text
    assert {type(call.args[0]) for call in ends.call_args_list} == {ssl.SSLSocket}


def test_the_certificates_of_the_program_s_own_client_are_used(cluster: DaskCluster, authority: Authority) -> None:
    """Where the program has a client of the cluster, its certificates serve, also those that are no files."""
    texts = {name: Path(path).read_text() for name, path in authority.certificates.items()}
    make: Any = distributed.Security
    security = make(tls_ca_file=texts["ca_file"], tls_client_cert=texts["cert"], tls_client_key=texts["key"])
    client: Any = distributed.Client
    with client(cluster.address, security=security), executor_of(cluster) as executor:
        assert executor.run(Job(function=functions.size_of, args=(b"here",), pool="dask")) == 4


def test_a_program_without_certificates_is_told_so(cluster: DaskCluster) -> None:
    """Without certificates the cluster cannot be reached, and the error of the job says why."""
    with executor_of(cluster) as executor:
        future = executor.submit(Job(function="os:getpid", pool="dask", retry_attempts=0))
        with pytest.raises(WorkerUnavailableError, match=r"the Dask cluster cannot be reached: .*TLS"):
            future.result(timeout=PATIENCE)


# --- who may connect ---

TOKEN = b"t" * 32


class Listening:
    """A Door with TLS, and a loop that serves it in a thread."""

    def __init__(self, authority: Authority) -> None:
        self.accepted: list[socket.socket] = []
        self._loop = loop = plain_loop()
        context = tls_context(authority.certificates, listens=True)
        self._door = Door(loop.call_soon, "127.0.0.1", TOKEN, self.accepted.append, context)
        self.address = self._door.address
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(0.005):
            self._loop.run_due()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._door.close()
        self._loop.close()


@pytest.fixture
def listening(authority: Authority) -> Iterator[Listening]:
    """A program that listens for agents of a cluster with TLS."""
    made = Listening(authority)
    yield made
    made.close()


def connect(listening: Listening, context: ssl.SSLContext | None) -> None:
    """Connect and prove the token, as an agent does.

    Raises:
        OSError: the program has refused it, or this side the program.
    """
    with socket.create_connection(listening.address, timeout=10) as sock:
        if context is None:
            sock.sendall(bytes(64))
            prove(sock, TOKEN)
        else:
            with context.wrap_socket(sock) as inside:
                prove(inside, TOKEN)


def test_an_agent_with_a_certificate_of_the_cluster_is_accepted(listening: Listening, authority: Authority) -> None:
    """Both sides have certificates of one authority, and the agent knows the token."""
    connect(listening, tls_context(authority.certificates, listens=False))
    wait_for(lambda: listening.accepted)
    (sock,) = listening.accepted
    assert isinstance(sock, ssl.SSLSocket)
    sock.close()


@pytest.mark.parametrize("what", ["no TLS", "no certificate", "a foreign certificate", "a foreign authority"])
def test_all_others_are_refused(listening: Listening, authority: Authority, tmp_path: Path, what: str) -> None:
    """What knows the token alone is refused, and an agent refuses a program of another authority."""
    stranger = Authority(tmp_path / "stranger")
    context: ssl.SSLContext | None = None
    if what == "no certificate":
        context = ssl.create_default_context(cafile=authority.ca_file)
        context.check_hostname = False
    elif what == "a foreign certificate":
        context = tls_context(stranger.certificates | {"ca_file": authority.ca_file}, listens=False)
    elif what == "a foreign authority":
        context = tls_context(authority.certificates | {"ca_file": stranger.ca_file}, listens=False)
    with pytest.raises(OSError, match=r".") as refused:
        connect(listening, context)
    assert not isinstance(refused.value, TimeoutError)
    assert listening.accepted == []
