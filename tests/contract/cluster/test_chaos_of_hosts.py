"""A long run on three hosts, of which workers are killed all the time, and now and then everything on one host."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, Transition
from executor_adapter.config import ClusterSettings, Settings, SshHostSettings, SshSettings
from tests.contract.cluster import functions
from tests.contract.cluster.hosts import CAN_MAKE_HOSTS, HOSTS, inside, pids_on, switch_off, three_hosts
from tests.contract.cluster.sshd import ROOT, SshServer
from tests.contract.conftest import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="it needs root and ip")]

JOBS = int(os.environ.get("CLUSTER_JOBS", "10000"))
SLOTS = 3
WORKER_EVERY, HOST_EVERY = 0.1, 10.0
"""Seconds between two kills of a worker process, and of a whole host."""
POLICY = RetryPolicy(retry_attempts=500, crash_attempts=500, retry_delay=0.01, max_delay=0.05)


class Killer(threading.Thread):
    """Kills worker processes, and from time to time all that runs on a host, whose ssh server then starts again."""

    def __init__(self, servers: dict[str, SshServer]) -> None:
        super().__init__(daemon=True)
        self.workers = self.hosts = 0
        self.stopped = threading.Event()
        self._servers = servers
        self._random = random.Random(16)

    def run(self) -> None:
        next_host = time.monotonic() + HOST_EVERY
        while not self.stopped.wait(WORKER_EVERY):
            self._kill_worker(self._random.choice(list(HOSTS)))
            if time.monotonic() >= next_host:
                next_host += HOST_EVERY
                host = self._random.choice(list(HOSTS))
                switch_off(host)
                self.hosts += 1
                self._servers[host].stop()
                self._servers[host].start()

    def _kill_worker(self, host: str) -> None:
        pids = pids_on(host)
        self._random.shuffle(pids)
        for pid in pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "job-worker":
                    os.kill(pid, signal.SIGKILL)
                    self.workers += 1
                    return


def test_all_jobs_end_once_and_nothing_is_left(tmp_path: Path) -> None:
    """While workers and hosts are killed, each job completes exactly once, and no process is left on any host."""
    ends: collections.Counter[str] = collections.Counter()

    def observe(transition: Transition) -> None:
        if transition.status.is_terminal:
            ends[transition.job.job_id] += 1

    with three_hosts():
        servers = {host: SshServer(tmp_path / host, (host,), address, inside(host)) for host, address in HOSTS.items()}
        for server in servers.values():
            server.start()
        configs = "".join((server.folder / "ssh_config").read_text() for server in servers.values())
        (tmp_path / "ssh_config").write_text(configs)
        hosts = [
            SshHostSettings(host=host, slots=SLOTS, python=server.python, directory=str(ROOT))
            for host, server in servers.items()
        ]
        ssh = SshSettings(hosts=tuple(hosts), command=("ssh", "-F", str(tmp_path / "ssh_config")))
        config = Settings(cluster=ClusterSettings(ssh=ssh, lost_after=3.0))
        killer = Killer(servers)
        with JobExecutor(SLOTS * len(HOSTS), config=config, observers=[observe]) as executor:
            seconds = random.Random(5)
            jobs = [
                Job(function=functions.work, args=(n, seconds.choice((0.0, 0.0, 0.01, 0.1))), pool="ssh", retry=POLICY)
                for n in range(JOBS)
            ]
            futures = [executor.submit(job) for job in jobs]
            killer.start()
            for number, future in enumerate(futures):
                assert future.result(timeout=300) == number
            killer.stopped.set()
            killer.join(30)
        codes = collections.Counter(attempt.error_code for job in jobs for attempt in job.attempts)
        print(f"\n{JOBS} jobs, {killer.workers} workers and {killer.hosts} hosts killed; attempts: {dict(codes)}")
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}
        assert set(ends.values()) == {1}
        assert len(ends) == JOBS
        wait_for(lambda: not _left(), seconds=10)
        for server in servers.values():
            server.stop()


def _left() -> list[str]:
    """Return the processes of the hosts that are no ssh server's."""
    found = []
    for host in HOSTS:
        for pid in pids_on(host):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                if not name.startswith("sshd"):
                    found.append(name)
    return found
