"""Faults on three hosts in network namespaces: one is cut off, one is switched off, the agent of one is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, Transition
from executor_adapter.config import Settings
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs
from tests.contract.cluster.far_clusters import FAR_POOLS, SLOTS, FarPool, far_cluster, host_of
from tests.contract.cluster.hosts import (
    CAN_MAKE_HOSTS,
    CLIENT,
    HOSTS,
    cut_off,
    full_port,
    make_deaf,
    make_mute,
    pids_on,
    slow_down,
    switch_off,
)
from tests.waiting import PATIENCE, wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(not CAN_MAKE_HOSTS, reason="it needs root, ip and /dev/net/tun")]

LOST_AFTER = 3.0
AT_ONCE = RetryPolicy(retry_attempts=20, retry_delay=0.0, jitter=0.0)
RUN_SECONDS = 0.4


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
                self.lost[host_of(job.attempts[-1].node)].append(now)
            if transition.status.is_terminal:
                self.ends[job.job_id].append(transition.status)


def _agent_on(runs: Runs, host: str) -> int:
    on_host = set(pids_on(host))
    return next(agent for agent in reversed(runs.agents()) if agent in on_host)


@contextlib.contextmanager
def jobs_on_three_hosts(pool: FarPool, runs: Runs, folder: Path, *, is_relayed: bool = False) -> Iterator[Faults]:
    """Run jobs on all hosts, and something meanwhile that ends some: all complete once, and are in one place at a time.

    `is_relayed`: no host reaches the program, so that the links go through the cluster.
    """
    faults = Faults()
    with far_cluster(pool, folder) as cluster, full_port(CLIENT) as unreachable:
        changed = {"advertise": unreachable} if is_relayed else {}
        config = Settings(cluster=cluster.settings(LOST_AFTER).model_copy(update=changed))
        with JobExecutor(SLOTS * len(HOSTS), config=config, observers=[faults.observe]) as executor:
            arguments = [(str(runs.folder), RUN_SECONDS, number) for number in range(120)]
            jobs = [Job(function=functions.note_times, args=each, pool=pool, retry=AT_ONCE) for each in arguments]
            futures = [executor.submit(job) for job in jobs]
            wait_for(lambda: sum(future.done() for future in futures) >= 20)
            wait_for(lambda: len(set(runs.agents())) == len(HOSTS))
            yield faults
            for future in futures:
                future.result(timeout=PATIENCE)
    assert {job.status for job in jobs} == {JobStatus.COMPLETED}
    assert all(faults.ends[job.job_id] == [JobStatus.COMPLETED] for job in jobs)
    assert max(job.state.crashes for job in jobs) == 0
    print(f"\n{pool}: attempts lost: { {host: len(times) for host, times in faults.lost.items()} }")
    assert runs.overlaps() == []


@pytest.mark.parametrize(("pool", "is_relayed"), [*product(FAR_POOLS, [False]), ("dask", True), ("ray", True)])
def test_three_faults_lose_nothing_and_run_nothing_twice(
    pool: FarPool, is_relayed: bool, runs: Runs, tmp_path: Path
) -> None:
    """With one host cut off, one switched off and one agent stopped, each loss is known in time.

    The same holds where no host reaches the program, and so the links go through the cluster.
    """
    with jobs_on_three_hosts(pool, runs, tmp_path / "cluster", is_relayed=is_relayed) as faults:
        cut_at = time.monotonic()
        cut_off("far3")
        killed_at = time.monotonic()
        switch_off("far2")
        stopped_at = time.monotonic()
        os.kill(_agent_on(runs, "far1"), signal.SIGSTOP)

    assert set(faults.lost) == set(HOSTS)
    known = {host: max(times) for host, times in faults.lost.items()}
    print(
        f"known after the cut {known['far3'] - cut_at:.2f} s, after the kill {known['far2'] - killed_at:.3f} s, "
        f"after the stop {known['far1'] - stopped_at:.2f} s"
    )
    assert known["far3"] - cut_at < 1.25 * LOST_AFTER + 1
    assert known["far1"] - stopped_at < 1.25 * LOST_AFTER + 1
    # The end of a direct connection tells at once, and not the silence.
    assert known["far2"] - killed_at < (1.25 * LOST_AFTER + 1 if is_relayed else LOST_AFTER)


@pytest.mark.parametrize("pool", FAR_POOLS)
def test_what_passes_in_one_direction_only_keeps_no_job(pool: FarPool, runs: Runs, tmp_path: Path) -> None:
    """A host that hears nothing and one that nobody hears are both lost in time, while the third is slow.

    The one that hears nothing is heard until it ends itself, after LOST_AFTER; only then does the silence begin.
    """
    with jobs_on_three_hosts(pool, runs, tmp_path / "cluster") as faults:
        slow_down("far1")
        dropped_at = time.monotonic()
        make_deaf("far3")
        make_mute("far2")

    assert set(faults.lost) == {"far2", "far3"}
    known = {host: max(times) - dropped_at for host, times in faults.lost.items()}
    print(f"known after {known}")
    assert known["far2"] < 1.25 * LOST_AFTER + 2
    assert known["far3"] < LOST_AFTER + 1.25 * LOST_AFTER + 2
