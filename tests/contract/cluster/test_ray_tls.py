"""Tests jobs on a Ray cluster whose connections use TLS, in a process of its own: Ray reads its settings once."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.config import ClusterSettings, RaySettings, Settings
from executor_adapter.pools.cluster.engines import leases
from tests.contract.cluster import functions
from tests.contract.cluster.certificates import Authority
from tests.contract.cluster.ray_cluster import ray_cluster
from tests.servers import ROOT
from tests.waiting import PATIENCE

IS_APART = "IN_A_PROCESS_WITH_TLS"
LARGE = 30 << 20


@pytest.mark.chaos
def test_the_link_uses_the_certificates_of_ray(tmp_path: Path) -> None:
    """Jobs run on a Ray cluster with TLS, and the connection of the agent is encrypted by it, too."""
    import ray

    authority = Authority(tmp_path / "authority", ["127.0.0.1", ray.util.get_node_ip_address()])
    files = {"CA_CERT": authority.ca_file, "SERVER_CERT": authority.cert, "SERVER_KEY": authority.key}
    tls = {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": path for name, path in files.items()}}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "chaos", __file__]
    done = subprocess.run(
        [*command, "-k", test_jobs_over_tls.__name__],
        env=os.environ | tls | {IS_APART: "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.chaos
@pytest.mark.skipif(IS_APART not in os.environ, reason="it runs in a process that the other test starts")
def test_jobs_over_tls(mocker: MockerFixture) -> None:
    """Short jobs, and some with large arguments and results, at once."""
    ends = mocker.spy(leases, "end_of")
    with ray_cluster(nodes=1) as cluster:
        config = Settings(cluster=ClusterSettings(ray=RaySettings(address=cluster.address)))
        with JobExecutor(2, config=config) as executor:
            large = Job(function=functions.reversed_bytes, args=(bytes(LARGE),), pool="ray")
            future = executor.submit(large)
            many = executor.map(functions.size_of, [bytes(size) for size in range(300)], pool="ray")
            assert [result.value for result in many] == list(range(300))
            assert len(future.result(timeout=PATIENCE)) == LARGE
    (sock,) = (call.args[0] for call in ends.call_args_list)
    assert isinstance(sock, ssl.SSLSocket)
