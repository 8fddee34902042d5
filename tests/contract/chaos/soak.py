"""Runs very many jobs of a chaos run in one executor, wave after wave, and measures what the program holds after each.

It needs a process of its own: pytest keeps what is logged, so its memory grows.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from executor_adapter import Job, JobExecutor
from executor_adapter.worker.process_tree import resident, tree
from tests.contract.chaos.chaos_run import SETTINGS, WORKERS, ChaosRun, seconds_until
from tests.waiting import PATIENCE

WAVE = 1_000
"""Jobs that are submitted at once: 900 in processes, 50 in threads and 50 coroutines."""


@dataclass
class Soaked:
    """What came of it: the ends of the jobs by error code, and what the program held after each wave."""

    ends: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    held: list[dict[str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def soak(jobs: int, seed: int, lock_file: Path) -> Soaked:
    """Run so many jobs in waves, up to the first one with a fault."""
    soaked = Soaked()
    with _silent() as progress, JobExecutor(WORKERS, config=SETTINGS) as executor:
        for number in range(jobs // WAVE):
            chaos = ChaosRun(seed=seed + number, lock_file=lock_file, processes=WAVE * 9 // 10, others=WAVE // 20)
            chaos.run_in(executor, PATIENCE)
            soaked.faults += chaos.check()
            if soaked.faults:
                executor.shutdown(timeout=0)
                break
            soaked.ends.update(job.error_code or "COMPLETED" for job, _ in chaos.jobs)
            soaked.kills += chaos.kills
            soaked.attempts += sum(len(job.attempts) for job, _ in chaos.jobs)
            del chaos
            _settle(executor)
            soaked.held.append(_held())
            print(f"wave {number + 1}: {soaked.held[-1]}", file=progress, flush=True)
    return soaked


@contextlib.contextmanager
def _silent() -> Iterator[TextIO]:
    """Send the output of the jobs, half a gigabyte of 300,000, to nowhere; yield the stream of errors as it was."""
    with os.fdopen(os.dup(2), "w") as errors, open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
        try:
            yield errors
        finally:
            os.dup2(errors.fileno(), 2)


def _settle(executor: JobExecutor) -> None:
    """Wait until all workers live, and one to spare: some were killed last, and each has five descriptors here."""
    wait([executor.submit(Job(function=time.sleep, args=(0.5,), pool="process")) for _ in range(WORKERS)])
    seconds_until(lambda: _held()["processes"] == WORKERS + 2, seconds=5.0)


def _held() -> dict[str, float]:
    gc.collect()
    return {
        "MiB": round(resident(os.getpid()) / 2**20, 1),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(tree(os.getpid())) - 1,
    }
