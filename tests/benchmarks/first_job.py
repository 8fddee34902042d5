"""Measures the first job of a program, in a new process. The pools are imported inside, which is part of it."""

from __future__ import annotations

import os
import time
from typing import Literal

from tests.benchmarks.functions import nothing

FirstPool = Literal["process", "thread"]
WORKERS = os.cpu_count() or 2


def measure_ours(pool: FirstPool) -> float:
    """Measure the seconds from the import of the package until the first job has its result."""
    began = time.perf_counter()
    from executor_adapter import Job, JobExecutor

    with JobExecutor(WORKERS) as executor:
        executor.submit(Job(function=nothing, pool=pool)).result()
        return time.perf_counter() - began


def measure_bare(pool: FirstPool) -> float:
    """Measure the same of concurrent.futures."""
    began = time.perf_counter()
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    with (ProcessPoolExecutor if pool == "process" else ThreadPoolExecutor)(WORKERS) as executor:
        executor.submit(nothing).result()
        return time.perf_counter() - began
