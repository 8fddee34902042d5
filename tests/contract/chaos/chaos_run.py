"""A chaos run: jobs of every kind in one executor, while its processes are killed, and the checks afterwards."""

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
from executor_adapter.pools.process.pool import ProcessPool
from executor_adapter.worker.process_tree import TREE_VARIABLE
from tests.contract.chaos import functions
from tests.contract.chaos.jobs import JobKind, draw_jobs
from tests.contract.process_pool.harness import pids_of
from tests.insides import supervisor_of

WORKERS = 6
SETTINGS = Settings(executor=ExecutorSettings(kill_grace=0.2))


@dataclass(kw_only=True)
class ChaosRun:
    """Runs `processes` process jobs, and `others` thread and coroutine jobs each.

    A worker is killed every `kill_every` seconds, and the guardian every `kill_guardian_every` if that is given.
    """

    seed: int
    lock_file: Path
    processes: int
    others: int
    kill_every: float = 0.1
    kill_guardian_every: float | None = None
    kills: Counter[str] = field(default_factory=Counter)
    tokens: set[bytes] = field(default_factory=set)
    """The tokens of all process trees that were seen."""
    faults: list[str] = field(default_factory=list)
    last_status: dict[Job, JobStatus] = field(default_factory=dict)
    terminal: Counter[Job] = field(default_factory=Counter)
    jobs: list[tuple[Job, JobKind]] = field(default_factory=list)

    def run(self, seconds: float) -> float:
        """Run all jobs in an executor of their own, and return the seconds it took, its end included."""
        started = time.monotonic()
        with JobExecutor(WORKERS, config=SETTINGS) as executor:
            are_done = self.run_in(executor, seconds)
            executor.shutdown(timeout=None if are_done else 0)
        return time.monotonic() - started

    def run_in(self, executor: JobExecutor, seconds: float) -> bool:
        """Run all jobs; return whether they are done. Those that are not within `seconds` are faults."""
        self.lock_file.touch()
        self._chance = random.Random(self.seed)
        self.jobs = draw_jobs(
            self._chance,
            processes=self.processes,
            others=self.others,
            lock_file=str(self.lock_file),
            guardian_dies=self.kill_guardian_every is not None,
        )
        executor.add_observer(self._observe)
        with self._killing(executor):
            futures = [executor.submit(job) for job, _ in self.jobs]
            self._cancel_some(executor)
            wait(futures, timeout=seconds)
        undone = [future.job for future in futures if not future.done()]
        self.faults += [f"not done: {_describe(job)}" for job in undone]
        self._check_results(executor, [future for future in futures if future.done()])
        executor.remove_observer(self._observe)
        return not undone

    # --- checks ---

    def _observe(self, transition: Transition) -> None:
        before = self.last_status.get(transition.job)
        if before is not transition.previous:
            self.faults.append(
                f"observed {transition.previous} -> {transition.status} after {before}: {_describe(transition.job)}"
            )
        self.last_status[transition.job] = transition.status
        if transition.status.is_terminal:
            self.terminal[transition.job] += 1

    def _check_results(self, executor: JobExecutor, futures: list[Any]) -> None:
        for future in futures:
            if future.exception() is None:
                given = future.result()
                number = given[0] if isinstance(given, tuple) else given
                if number != functions.answer(future.job.metadata["number"]):
                    self.faults.append(f"returned {number}: {_describe(future.job)}")
        stats = executor.stats()
        if stats.jobs_pending or stats.jobs_running or stats.jobs_retrying or stats.workers_busy:
            self.faults.append(f"after all jobs: {stats}")

    def check(self) -> list[str]:
        """Return a line for each fault of the run."""
        for job, kind in self.jobs:
            if self.terminal[job] != 1:
                self.faults.append(f"terminal {self.terminal[job]} times: {_describe(job)}")
            if job.error_code != kind.code or (kind.code is None) is not (job.status is JobStatus.COMPLETED):
                self.faults.append(f"should end with {kind.code or 'no error'}: {_describe(job)}")
        overlaps = Path(f"{self.lock_file}.overlaps")
        if overlaps.exists():
            self.faults.append(f"ran twice at once: {overlaps.read_text().split()}")
        if self.kill_guardian_every is None and len(self.tokens) > 1:
            self.faults.append(f"{len(self.tokens)} guardians, one after another, though none was killed")
        return self.faults

    # --- kills ---

    def _cancel_some(self, executor: JobExecutor) -> None:
        """Cancel the jobs to be cancelled, each at a random time: queued, running or waiting for a retry."""
        for job, kind in self.jobs:
            if kind.cancelled:
                timer = threading.Timer(self._chance.random() * 5.0, executor.cancel, (job.job_id,))
                timer.daemon = True
                timer.start()

    @contextlib.contextmanager
    def _killing(self, executor: JobExecutor) -> Iterator[None]:
        finished = threading.Event()
        killer = threading.Thread(target=self._kill_until, args=(finished, executor), daemon=True)
        killer.start()
        try:
            yield
        finally:
            finished.set()
            killer.join()

    def _kill_until(self, finished: threading.Event, executor: JobExecutor) -> None:
        chance = random.Random(self.seed + 1)
        guardian_at = time.monotonic() + (self.kill_guardian_every or float("inf"))
        at = time.monotonic()
        while not finished.wait(max(0.0, at - time.monotonic())):
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
        """Kill a process if it belongs to a tree of this executor: its pid may be in use by another by now."""
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
    """Return the pids of the executor's worker processes."""
    pool = supervisor_of(executor).pools.made.get("process")
    # It belongs to the supervisor's thread, and may change while this thread reads it.
    with contextlib.suppress(RuntimeError):
        return pids_of(pool) if isinstance(pool, ProcessPool) else []
    return []


def tree_token(pid: int) -> bytes | None:
    """Return the environment variable that marks the guardian's tree to which a process belongs."""
    for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if variable.startswith(TREE_VARIABLE.encode() + b"="):
            return variable
    return None


def parent_of(pid: int) -> int:
    """Return the pid of the process's parent; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _describe(job: Job) -> str:
    last = job.attempts[-1] if job.attempts else None
    return f"{job.pool} {job.job_type} {job.metadata['number']} is {job.status}, {job.error_code}, last {last}"


def seconds_until(condition: Callable[[], Any], *, seconds: float) -> float:
    """Return the seconds until the condition holds; `seconds` or more if it does not by then."""
    started = time.monotonic()
    while not condition() and time.monotonic() < started + seconds:
        time.sleep(0.01)
    return time.monotonic() - started
