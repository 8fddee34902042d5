"""Rounds in which a host with 50 jobs is killed at a random moment, and two others recover its jobs."""

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
from pathlib import Path

from sqlalchemy import update

from executor_adapter.job.ids import uuid7
from executor_adapter.job.status import JobStatus
from executor_adapter.store import Host, JobFilter, JobRecord, JobStore
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.schema import jobs
from tests.contract.stores.host_forker import HostOrder
from tests.waiting import PATIENCE, wait_for

JOBS = 50

BROKEN: tuple[dict[str, str], ...] = (
    {"status": "paused"},
    {"attempts": "[[1, 2"},
    {"metadata": "[]"},
    {"progress": "{}}"},
    {"call": "{"},
    {"call": '{"function": "no_such_module:function"}'},
)
"""Columns of rows that make no sense, or of jobs that no program can run."""


class HostForker:
    """Starts the program `host_forker` and has it fork hosts."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.stores.host_forker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, order: HostOrder) -> int:
        """Fork a host; return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(order)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the program; its hosts are killed by those who ordered them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


class CrashRound:
    """Kills one host and has two others recover its jobs, one of which may have started before.

    `with_broken`: there are rows of a gone host that make no sense besides.
    """

    def __init__(
        self, forker: HostForker, store: JobStore, url: str, run_log: Path, seed: int, *, with_broken: bool
    ) -> None:
        self._with_broken = with_broken
        self._forker = forker
        self._store = store
        self._url = url
        self._draw = random.Random(seed)
        self._seed = seed
        self._run_log = run_log
        self._names = [f"{run_log.name}-{number}" for number in range(JOBS)]
        run_log.mkdir()

    def run(self) -> None:
        """Run the round and check what has become of the jobs."""
        others = [self._host()] if self._draw.random() < 0.5 else []
        victim = self._host(self._names)
        try:
            wait_for((self._run_log / "acknowledged").exists)
            time.sleep(self._draw.random() * 0.6)
            if self._with_broken:
                self._write_broken_rows()
            finished = self._kill(victim)
            others += [self._host() for _ in range(2 - len(others))]
            wait_for(self._all_are_finished)
            self._check(finished)
            if self._with_broken:
                wait_for(self._are_broken_set_aside)
        finally:
            for other in others:
                os.kill(other, signal.SIGKILL)

    def _host(self, names: list[str] | None = None) -> int:
        order = HostOrder(
            url=self._url, run_log=str(self._run_log), seed=self._draw.randrange(1 << 32), names=names or []
        )
        return self._forker.fork(order)

    def _kill(self, victim: int) -> dict[str, int]:
        """Kill the host; return the jobs that were recorded as finished before, each with its number of runs."""
        finished = [record.job_id for record in self._records() if record.status.is_terminal]
        os.kill(victim, signal.SIGKILL)
        return {job_id: self._runs(job_id) for job_id in finished}

    def _write_broken_rows(self) -> None:
        """Write jobs of a host that is gone, and break their rows."""
        host = Host(host_id=uuid7(), machine="elsewhere", pid=1, process_started=1)
        self._store.register(host, lease=60)
        call = '{"function": "os:getpid"}'
        names = [f"broken-{self._run_log.name}-{number}" for number in range(len(BROKEN))]
        records = [
            JobRecord(job_id=name, status=JobStatus.RUNNING, attempt=1, call=call, created_at=1.0, host=host.host_id)
            for name in names
        ]
        assert self._store.write(host.host_id, records, lease=60).taken == []
        engine = make_engine(self._url)
        with engine.begin() as connection:
            for name, columns in zip(names, BROKEN, strict=True):
                connection.execute(update(jobs).where(jobs.c.job_id == name).values(columns))
        engine.dispose()
        self._store.leave(host.host_id)

    def _are_broken_set_aside(self) -> bool:
        found = self._store.find(JobFilter(text=f"broken-{self._run_log.name}-"), limit=None).records
        return len(found) == len(BROKEN) and all(record.status is JobStatus.FAILED for record in found)

    def _records(self) -> list[JobRecord]:
        found = self._store.find(JobFilter(text=f"{self._run_log.name}-"), limit=None).records
        return [record for record in found if record.job_id.startswith(f"{self._run_log.name}-")]

    def _all_are_finished(self) -> bool:
        return all(record.status.is_terminal for record in self._records())

    def _runs(self, job_id: str) -> int:
        file = self._run_log / job_id
        return len(file.read_text().splitlines()) if file.exists() else 0

    def _check(self, finished: dict[str, int]) -> None:
        seed = f"seed {self._seed}"
        acknowledged = set((self._run_log / "acknowledged").read_text().split())
        records = {record.job_id: record for record in self._records()}
        assert acknowledged <= records.keys(), f"{seed}: lost {acknowledged - records.keys()}"
        assert not (self._run_log / "overlaps").exists(), f"{seed}: ran twice at once"
        assert {job_id: self._runs(job_id) for job_id in finished} == finished, f"{seed}: ran again after its end"
        assert all(self._runs(job_id) for job_id in records), f"{seed}: finished without a run"
        wrong = {job_id: record for job_id, record in records.items() if record.status is not self._expected(record)}
        assert not wrong, f"{seed}: {wrong}"

    def _expected(self, record: JobRecord) -> JobStatus:
        return JobStatus.FAILED if record.function.endswith(":fail") else JobStatus.COMPLETED


def run_rounds(store: JobStore, url: str, directory: Path, *, count: int, seed: int, with_broken: bool = False) -> None:
    """Run `count` rounds, each with a seed of its own; `with_broken` as in CrashRound.

    Raises:
        AssertionError: names the seed of the round.
    """
    print(f"seed {seed}")
    with contextlib.closing(HostForker()) as forker:
        for number in range(count):
            folder = directory / f"round{seed}x{number}"
            CrashRound(forker, store, url, folder, seed + number, with_broken=with_broken).run()
