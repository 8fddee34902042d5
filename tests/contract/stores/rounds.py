"""Rounds in which a host with 50 jobs is killed at a random moment, while others wait for what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from executor_adapter.job.status import JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore
from tests.contract.conftest import wait_for
from tests.contract.stores.nursery import HostOrder

JOBS = 50


class Nursery:
    """See `nursery`; a context manager at whose end all of its hosts are gone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.stores.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def host(self, order: HostOrder) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(order)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    raising = Nursery()
    try:
        yield raising
    finally:
        raising.close()


class Round:
    """One host is killed; two others, one of which may be there before, take over what it leaves behind."""

    def __init__(self, hosts: Nursery, store: JobStore, url: str, ledger: Path, seed: int) -> None:
        self._hosts = hosts
        self._store = store
        self._url = url
        self._draw = random.Random(seed)
        self._seed = seed
        self._ledger = ledger
        self._names = [f"{ledger.name}-{number}" for number in range(JOBS)]
        ledger.mkdir()

    def run(self) -> None:
        heirs = [self._host()] if self._draw.random() < 0.5 else []
        victim = self._host(self._names)
        try:
            wait_for((self._ledger / "acknowledged").exists)
            time.sleep(self._draw.random() * 0.6)
            over = self._over_at_kill(victim)
            heirs += [self._host() for _ in range(2 - len(heirs))]
            wait_for(self._all_are_over, seconds=30)
            self._check(over)
        finally:
            for heir in heirs:
                os.kill(heir, signal.SIGKILL)

    def _host(self, names: list[str] | None = None) -> int:
        order = HostOrder(
            url=self._url, ledger=str(self._ledger), seed=self._draw.randrange(1 << 32), names=names or []
        )
        return self._hosts.host(order)

    def _over_at_kill(self, victim: int) -> dict[str, int]:
        """Kill it. The jobs that the store said before were over, with how often each had run."""
        over = [record.job_id for record in self._records() if record.status.is_terminal]
        os.kill(victim, signal.SIGKILL)
        return {job_id: self._runs(job_id) for job_id in over}

    def _records(self) -> list[JobRecord]:
        found = self._store.find(JobFilter(text=f"{self._ledger.name}-"), limit=None).records
        return [record for record in found if record.job_id.startswith(f"{self._ledger.name}-")]

    def _all_are_over(self) -> bool:
        return all(record.status.is_terminal for record in self._records())

    def _runs(self, job_id: str) -> int:
        file = self._ledger / job_id
        return len(file.read_text().splitlines()) if file.exists() else 0

    def _check(self, over: dict[str, int]) -> None:
        told = f"seed {self._seed}"
        acknowledged = set((self._ledger / "acknowledged").read_text().split())
        records = {record.job_id: record for record in self._records()}
        assert acknowledged <= records.keys(), f"{told}: lost {acknowledged - records.keys()}"
        assert not (self._ledger / "overlaps").exists(), f"{told}: ran twice at once"
        assert {job_id: self._runs(job_id) for job_id in over} == over, f"{told}: ran again though it was over"
        assert all(self._runs(job_id) for job_id in records), f"{told}: over, and never ran"
        wrong = {job_id: record for job_id, record in records.items() if record.status is not self._expected(record)}
        assert not wrong, f"{told}: {wrong}"

    def _expected(self, record: JobRecord) -> JobStatus:
        return JobStatus.FAILED if record.function.endswith(":fail") else JobStatus.COMPLETED


def run_rounds(store: JobStore, url: str, directory: Path, *, count: int, seed: int) -> None:
    """
    Raises:
        AssertionError: naming the seed of the round.
    """
    print(f"seed {seed}")
    with nursery() as hosts:
        for number in range(count):
            Round(hosts, store, url, directory / f"round{seed}x{number}", seed + number).run()
