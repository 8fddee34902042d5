"""A storm: jobs of every kind in one executor, while a stranger kills its processes; and what must hold after it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.job.transition import Transition
from executor_adapter.pools.guardian.pool import ProcessPool
from executor_adapter.worker.process_tree import TREE_VARIABLE
from tests.contract.chaos import functions
from tests.contract.chaos.jobs import Kind, draw

WORKERS = 6
SETTINGS = Settings(executor=ExecutorSettings(kill_grace=0.2))


@dataclass(kw_only=True)
class Storm:
    """`processes` jobs in processes and `others` each in threads and coroutines; a worker is killed every
    `kill_every` seconds, and if asked the guardian every `kill_guardian_every`."""

    seed: int
    ledger: Path
    processes: int
    others: int
    kill_every: float = 0.1
    kill_guardian_every: float | None = None
    kills: Counter[str] = field(default_factory=Counter)
    tokens: set[bytes] = field(default_factory=set)
    """The marks of all trees that were seen."""
    faults: list[str] = field(default_factory=list)
    told: dict[Job, JobStatus] = field(default_factory=dict)
    terminal: Counter[Job] = field(default_factory=Counter)
    jobs: list[tuple[Job, Kind]] = field(default_factory=list)

    def rage(self, seconds: float) -> float:
        """Run all jobs; the seconds it took. Fails where they are not over within `seconds`."""
        self.ledger.touch()
        self._chance = random.Random(self.seed)
        started = time.monotonic()
        self.jobs = draw(
            self._chance,
            processes=self.processes,
            others=self.others,
            ledger=str(self.ledger),
            guardian_dies=self.kill_guardian_every is not None,
        )
        with JobExecutor(WORKERS, config=SETTINGS, observers=(self._observe,)) as executor:
            with self._killing(executor):
                futures = [executor.submit(job) for job, _ in self.jobs]
                self._cancel_some(executor)
                wait(futures, timeout=seconds)
            undone = [future.job for future in futures if not future.done()]
            self.faults += [f"not over: {_describe(job)}" for job in undone]
            self._check_results(executor, [future for future in futures if future.done()])
            executor.shutdown(timeout=0 if undone else None)
        return time.monotonic() - started

    # --- watching ---

    def _observe(self, told: Transition) -> None:
        before = self.told.get(told.job)
        if before is not told.previous:
            self.faults.append(f"told {told.previous} -> {told.status} after {before}: {_describe(told.job)}")
        self.told[told.job] = told.status
        if told.status.is_terminal:
            self.terminal[told.job] += 1

    def _check_results(self, executor: JobExecutor, futures: list[Any]) -> None:
        for future in futures:
            if future.exception() is None:
                given = future.result()
                number = given[0] if isinstance(given, tuple) else given
                if number != functions.answer(future.job.metadata["number"]):
                    self.faults.append(f"gave {number}: {_describe(future.job)}")
        stats = executor.stats()
        if stats.jobs_pending or stats.jobs_running or stats.jobs_retrying or stats.workers_busy:
            self.faults.append(f"after all jobs: {stats}")

    def check(self) -> list[str]:
        """What went wrong: a line for each fault; none, if the storm left no trace."""
        for job, kind in self.jobs:
            if self.terminal[job] != 1:
                self.faults.append(f"terminal {self.terminal[job]} times: {_describe(job)}")
            if job.error_code != kind.code or (kind.code is None) is not (job.status is JobStatus.COMPLETED):
                self.faults.append(f"should end with {kind.code or 'no error'}: {_describe(job)}")
        overlaps = Path(f"{self.ledger}.overlaps")
        if overlaps.exists():
            self.faults.append(f"ran twice at once: {overlaps.read_text().split()}")
        if self.kill_guardian_every is None and len(self.tokens) > 1:
            self.faults.append(f"{len(self.tokens)} guardians, one after another, and no stranger killed any")
        return self.faults

    # --- harming ---

    def _cancel_some(self, executor: JobExecutor) -> None:
        """Those to be cancelled, each at a moment of its own: queued, running or waiting for a retry."""
        for job, kind in self.jobs:
            if kind.cancelled:
                timer = threading.Timer(self._chance.random() * 5.0, executor.cancel, (job.job_id,))
                timer.daemon = True
                timer.start()

    @contextlib.contextmanager
    def _killing(self, executor: JobExecutor) -> Iterator[None]:
        calm = threading.Event()
        killer = threading.Thread(target=self._kill_until, args=(calm, executor), daemon=True)
        killer.start()
        try:
            yield
        finally:
            calm.set()
            killer.join()

    def _kill_until(self, calm: threading.Event, executor: JobExecutor) -> None:
        chance = random.Random(self.seed + 1)
        guardian_at = time.monotonic() + (self.kill_guardian_every or float("inf"))
        at = time.monotonic()
        while not calm.wait(max(0.0, at - time.monotonic())):
            at += self.kill_every
            pids = worker_pids(executor)
            if not pids:
                continue
            victim, what = chance.choice(pids), "worker"
            if time.monotonic() >= guardian_at:
                guardian_at += self.kill_guardian_every or float("inf")
                victim, what = parent_of(victim), "guardian"
            self.kills[what] += self._kill(victim)

    def _kill(self, pid: int) -> bool:
        """SIGKILL it, if it is one of a tree of ours: its id may be another's by now."""
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                token = tree_token(pid)
                if token is not None and pid != os.getpid():
                    self.tokens.add(token)
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    return True
            finally:
                os.close(pidfd)
        return False


def worker_pids(executor: JobExecutor) -> list[int]:
    pool = executor._supervisor.pools.made.get("process")
    # The supervisor's own, read by another thread: it may change in between.
    with contextlib.suppress(RuntimeError):
        return pool.pids if isinstance(pool, ProcessPool) else []
    return []


def tree_token(pid: int) -> bytes | None:
    """The mark of the guardian's tree that a process belongs to."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(TREE_VARIABLE.encode() + b"="):
            return variable
    return None


def parent_of(pid: int) -> int:
    """The process's parent; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _describe(job: Job) -> str:
    last = job.attempts[-1] if job.attempts else None
    return f"{job.pool} {job.job_type} {job.metadata['number']} is {job.status}, {job.error_code}, last {last}"


def quickest_of(condition: Callable[[], Any], *, seconds: float) -> float:
    """The seconds until the condition holds; `seconds` where it does not by then."""
    started = time.monotonic()
    while not condition() and time.monotonic() < started + seconds:
        time.sleep(0.01)
    return time.monotonic() - started
