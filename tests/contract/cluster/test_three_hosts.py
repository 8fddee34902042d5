"""Faults on three hosts in network namespaces: one is cut off, one is switched off, the agent of one is stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, Transition
from executor_adapter.config import ClusterSettings, DaskSettings, Settings, SshHostSettings, SshSettings
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.dask_cluster import DaskCluster
from tests.contract.cluster.hosts import (
    CAN_MAKE_HOSTS,
    CLIENT,
    HOSTS,
    cut_off,
    inside,
    pids_on,
    switch_off,
    three_hosts,
)
from tests.contract.cluster.sshd import ROOT, SshServer
from tests.contract.conftest import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="it needs root and ip")]

LOST_AFTER = 3.0
SLOTS = 3
AT_ONCE = RetryPolicy(retry_attempts=20, retry_delay=0.0, jitter=0.0)
RUN_SECONDS = 0.4


@pytest.fixture(params=["ssh", "dask"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClusterSettings]:
    """The settings of a cluster of three hosts with three slots each."""
    with three_hosts():
        servers = _ssh_servers(tmp_path) if request.param == "ssh" else []
        cluster = _dask_cluster(tmp_path) if request.param == "dask" else None
        try:
            yield _settings(servers, cluster, tmp_path)
        finally:
            for server in servers:
                server.stop()
            if cluster is not None:
                cluster.stop()


def _ssh_servers(folder: Path) -> list[SshServer]:
    servers = [SshServer(folder / host, (host,), address, inside(host)) for host, address in HOSTS.items()]
    for server in servers:
        server.start()
    (folder / "ssh_config").write_text("".join((server.folder / "ssh_config").read_text() for server in servers))
    return servers


def _dask_cluster(folder: Path) -> DaskCluster:
    cluster = DaskCluster(folder)
    cluster.start_scheduler(CLIENT)
    for host, address in HOSTS.items():
        cluster.start_worker(SLOTS, address, inside(host))
    cluster.wait_for_workers(len(HOSTS))
    return cluster


def _settings(servers: list[SshServer], cluster: DaskCluster | None, folder: Path) -> ClusterSettings:
    if cluster is not None:
        return ClusterSettings(dask=DaskSettings(**json.loads(cluster.settings())), lost_after=LOST_AFTER)
    hosts = [
        SshHostSettings(host=server.hosts[0], slots=SLOTS, python=server.python, directory=str(ROOT))
        for server in servers
    ]
    ssh = SshSettings(hosts=tuple(hosts), command=("ssh", "-F", str(folder / "ssh_config")))
    return ClusterSettings(ssh=ssh, lost_after=LOST_AFTER)


class Faults:
    """Observes which attempts were lost, and when that was known."""

    def __init__(self) -> None:
        self.lost: dict[str, list[float]] = defaultdict(list)
        self.ends: dict[str, list[JobStatus]] = defaultdict(list)
        self._lock = threading.Lock()

    def observe(self, transition: Transition) -> None:
        now, job = time.monotonic(), transition.job
        with self._lock:
            if transition.status is JobStatus.RETRYING and job.attempts[-1].error_code == "NODE_LOST":
                self.lost[_host_of(job.attempts[-1].node)].append(now)
            if transition.status.is_terminal:
                self.ends[job.job_id].append(transition.status)


def _host_of(node: str | None) -> str:
    """Return the host of a node, which Dask names by its address."""
    return next(host for host, address in HOSTS.items() if host == node or f"//{address}:" in str(node))


def _agent_on(runs: Runs, host: str) -> int:
    on_host = set(pids_on(host))
    return next(agent for agent in reversed(runs.agents()) if agent in on_host)


def test_three_faults_lose_nothing_and_run_nothing_twice(settings: ClusterSettings, runs: Runs) -> None:
    """With one host cut off, one switched off and one agent stopped, every job completes once.

    No job runs in two places at once, its children included, and each loss is known in time.
    """
    faults = Faults()
    pool = "ssh" if settings.ssh.hosts else "dask"
    config = Settings(cluster=settings)
    with JobExecutor(SLOTS * len(HOSTS), config=config, observers=[faults.observe]) as executor:
        arguments = [(str(runs.folder), RUN_SECONDS, number) for number in range(120)]
        jobs = [Job(function=functions.note_times, args=each, pool=pool, retry=AT_ONCE) for each in arguments]
        futures = [executor.submit(job) for job in jobs]
        wait_for(lambda: sum(future.done() for future in futures) >= 20, seconds=30)

        cut_at = time.monotonic()
        cut_off("far3")
        killed_at = time.monotonic()
        switch_off("far2")
        stopped_at = time.monotonic()
        os.kill(_agent_on(runs, "far1"), signal.SIGSTOP)

        for future in futures:
            future.result(timeout=120)
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert all(faults.ends[job.job_id] == [JobStatus.COMPLETED] for job in jobs)
    assert max(job.state.crashes for job in jobs) == 0

    known = {host: max(times) for host, times in faults.lost.items()}
    print(
        f"\n{pool}: known after the cut {known['far3'] - cut_at:.2f} s, "
        f"after the kill {known['far2'] - killed_at:.3f} s, "
        f"after the stop {known['far1'] - stopped_at:.2f} s; "
        f"attempts lost: { {host: len(times) for host, times in faults.lost.items()} }"
    )
    assert known["far3"] - cut_at < 1.25 * LOST_AFTER + 1
    assert known["far1"] - stopped_at < 1.25 * LOST_AFTER + 1
    assert known["far2"] - killed_at < 0.25, "it takes less than 0.1 s where the machine has nothing else to do"
    overlaps = _overlaps(runs)
    assert overlaps == []


def _overlaps(runs: Runs) -> list[str]:
    """Return the jobs of which two attempts, or what they started, were alive at the same time."""
    by_job: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, begun, ended in runs.lives():
        by_job[name].append((begun, ended))
    found = []
    for name, lives in by_job.items():
        lives.sort()
        pairs = itertools.pairwise(lives)
        found += [f"job {name}: {first} and {second}" for first, second in pairs if first[1] >= second[0]]
    return found
