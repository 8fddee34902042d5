"""Measures the CPU time that no-op jobs cost, in a burst: of the program, and of all its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.job.pool_names import PoolName
from executor_adapter.worker.process_tree import tree
from tests.benchmarks.contestants import POLICY
from tests.benchmarks.figures import Figures
from tests.benchmarks.functions import nothing, nothing_on_loop

JOBS = 20_000
"""No-op jobs of a round."""
ROUNDS = 3
_TICK = os.sysconf("SC_CLK_TCK")


def measure_cpu(pool: PoolName, settings: Settings, workers: int, store: str | None = None) -> dict[str, Figures]:
    """Measure the CPU seconds a no-op job that so many workers run, until it is in the store if there is one.

    "program" is this process alone, and "all" this process with those below it on this machine.
    """
    with JobExecutor(workers, config=settings, store=store) as executor:
        run_burst(executor, pool, JOBS // 10)
        rounds = [_cpu_of_burst(executor, pool) for _ in range(ROUNDS)]
    return {name: Figures(tuple(each[name] / JOBS for each in rounds)) for name in rounds[0]}


def _cpu_of_burst(executor: JobExecutor, pool: PoolName) -> dict[str, float]:
    before = _cpu_of_all()
    program = cpu_of(lambda: run_burst(executor, pool, JOBS))
    return {"program": program, "all": _cpu_of_all() - before}


def run_burst(executor: JobExecutor, pool: PoolName, jobs: int) -> None:
    """Submit so many no-op jobs at once, and wait until all have finished and are in the store."""
    wait([submit(executor, pool) for _ in range(jobs)])
    executor.flush()


def submit(executor: JobExecutor, pool: PoolName) -> Any:
    """Submit a no-op job with a timeout and a retry policy; return its future."""
    function = nothing_on_loop if pool == "coroutine" else nothing
    return executor.submit(Job(function=function, pool=pool, max_runtime=60.0, retry=POLICY))


def cpu_of(run: Callable[[], object]) -> float:
    """Return the CPU seconds that this process uses during the call."""
    before = time.process_time()
    run()
    return time.process_time() - before


def cpu_seconds(entry: Path, *, with_reaped: bool = False) -> float:
    """Return the CPU seconds of a process or thread, given its folder below /proc, so far.

    With `with_reaped`, also those of its children that have ended and for which it has waited.
    """
    fields = (entry / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_reaped else 13])) / _TICK


def _cpu_of_all() -> float:
    return sum(cpu_seconds(Path(f"/proc/{pid}"), with_reaped=True) for pid in tree(os.getpid()))
