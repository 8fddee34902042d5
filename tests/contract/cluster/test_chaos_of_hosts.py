"""A long run on three hosts, of which workers are killed all the time, and now and then everything on one host."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import signal
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy, Transition
from executor_adapter.config import ExecutorSettings, Settings
from tests.contract.cluster import functions
from tests.contract.cluster.far_clusters import FAR_POOLS, SLOTS, FarCluster, FarPool, far_cluster
from tests.contract.cluster.hosts import CAN_MAKE_HOSTS, HOSTS, pids_on, switch_off
from tests.waiting import PATIENCE, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="it needs root, ip and /dev/net/tun")]

JOBS = int(os.environ.get("CLUSTER_JOBS", "10000"))
WORKER_EVERY, HOST_EVERY = 0.1, 10.0
"""Seconds between two kills of a worker process, and of a whole host."""
POLICY = RetryPolicy(retry_attempts=500, crash_attempts=500, retry_delay=0.01, max_delay=0.05)


class Killer(threading.Thread):
    """Kills worker processes, and from time to time all that runs on a host, which then joins the cluster again."""

    def __init__(self, cluster: FarCluster) -> None:
        super().__init__(daemon=True)
        self.workers = self.hosts = 0
        self.stopped = threading.Event()
        self._cluster = cluster
        self._random = random.Random(16)

    def run(self) -> None:
        next_worker = time.monotonic()
        next_host = next_worker + HOST_EVERY
        while not self.stopped.wait(max(0.0, next_worker - time.monotonic())):
            next_worker += WORKER_EVERY
            workers = {host: _workers_on(host) for host in HOSTS}
            self._kill_one_of([pid for pids in workers.values() for pid in pids])
            # An engine may need longer than that until the last one has joined again.
            if time.monotonic() >= next_host and all(workers.values()):
                next_host = time.monotonic() + HOST_EVERY
                host = self._random.choice(list(HOSTS))
                switch_off(host)
                self.hosts += 1
                self._cluster.start_host(host)

    def _kill_one_of(self, workers: list[int]) -> None:
        with contextlib.suppress(OSError, IndexError):  # It has just ended, or there is none.
            os.kill(self._random.choice(workers), signal.SIGKILL)
            self.workers += 1


def _workers_on(host: str) -> list[int]:
    """Return the worker processes on a host."""
    found = []
    for pid in pids_on(host):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "job-worker":
                found.append(pid)
    return found


@pytest.mark.parametrize("pool", FAR_POOLS)
def test_all_jobs_end_once_and_nothing_is_left(pool: FarPool, tmp_path: Path) -> None:
    """While workers and hosts are killed, each job completes exactly once, and no process is left on any host.

    Jobs that lose their worker run again, and none of them while anything of its earlier run is alive.
    """
    marks = tmp_path / "marks"
    marks.mkdir()
    ends: collections.Counter[str] = collections.Counter()

    def observe(transition: Transition) -> None:
        if transition.status.is_terminal:
            ends[transition.job.job_id] += 1

    with far_cluster(pool, tmp_path / "cluster") as cluster:
        # What is killed is to run jobs, and not to import this.
        workers = ExecutorSettings(preload=(functions.__name__,))
        config = Settings(cluster=cluster.settings(lost_after=3.0), executor=workers)
        killer = Killer(cluster)
        began = time.monotonic()
        with JobExecutor(SLOTS * len(HOSTS), config=config, observers=[observe]) as executor:
            seconds = random.Random(5)
            arguments = [(number, seconds.choice((0.0, 0.01, 0.1, 0.4)), str(marks)) for number in range(JOBS)]
            jobs = [Job(function=functions.work_alone, args=each, pool=pool, retry=POLICY) for each in arguments]
            futures = [executor.submit(job) for job in jobs]
            killer.start()
            try:
                for number, future in enumerate(futures):
                    _wait_while_jobs_end(future, ends)
                    assert future.result(timeout=0) == number
            finally:
                killer.stopped.set()
                killer.join(PATIENCE)
        codes = collections.Counter(attempt.error_code for job in jobs for attempt in job.attempts)
        runs = [(marks / str(number)).read_text() for number in range(JOBS)]
        print(
            f"\n{pool}: {JOBS} jobs in {time.monotonic() - began:.0f} s, {killer.workers} workers and {killer.hosts} "
            f"hosts killed; attempts: {dict(codes)}; {sum(len(each) > 1 for each in runs)} jobs began more than once, "
            f"{sum('!' in each for each in runs)} while they were still running"
        )
        assert not [number for number, each in enumerate(runs) if "!" in each]
        assert {job.status for job in jobs} == {JobStatus.COMPLETED}
        assert set(ends.values()) == {1}
        assert len(ends) == JOBS
        wait_for(lambda: not _left())


def _wait_while_jobs_end(future: JobFuture, ends: collections.Counter[str]) -> None:
    """Wait for a job that may be killed again and again, and then queues behind all others, as long as any ends."""
    ended = -1
    while not future.done() and ended < len(ends):
        ended = len(ends)
        wait([future], timeout=PATIENCE)


def _left() -> list[str]:
    """Return the processes of ours on the hosts: agents, guardians and workers."""
    found = []
    for host in HOSTS:
        for pid in pids_on(host):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "executor_adapter." in command:
                    found.append(command)
    return found
