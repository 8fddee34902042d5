"""Measures many queued jobs in a new process, whose memory is theirs alone."""

from __future__ import annotations

import os
import threading
import time

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.worker.process_tree import resident
from tests.benchmarks.contestants import POLICY, PoolName
from tests.benchmarks.functions import nothing, nothing_on_loop

WORKERS = 4


def measure_queued(pool: PoolName, jobs: int) -> dict[str, float]:
    """Queue `jobs` no-op jobs while nothing can start, then let them run, with the garbage collector on.

    Returns bytes per job, jobs per second, and the seconds of both parts.
    """
    function = nothing_on_loop if pool == "coroutine" else nothing
    with JobExecutor(WORKERS, config=Settings()) as executor:
        executor.run(Job(function=function, pool=pool))
        gate = threading.Event()
        guards = [executor.submit(Job(function=gate.wait, pool="thread")) for _ in range(WORKERS)]
        while executor.stats().workers_busy < WORKERS:
            time.sleep(0.001)
        before = resident(os.getpid())
        started = time.perf_counter()
        jobs_made = (Job(function=function, pool=pool, max_runtime=60.0, retry=POLICY) for _ in range(jobs))
        futures = [executor.submit(job) for job in jobs_made]
        while executor.stats().jobs_pending < jobs:
            time.sleep(0.001)
        queued = time.perf_counter()
        held = resident(os.getpid()) - before
        gate.set()
        for future in (*guards, *futures):
            future.result()
        ended = time.perf_counter()
    return {
        "bytes": held / jobs,
        "rate": jobs / (ended - started),
        "queueing": queued - started,
        "running": ended - queued,
    }
