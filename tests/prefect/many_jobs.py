"""A flow of many jobs, some of which fail, to run in a process of its own: see tests.benchmarks.apart."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from executor_adapter import Job, JobExecutor, RetryPolicy, current_job
from executor_adapter.config import Settings

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.2)


def work(failures: int) -> None:
    """Fail in the first `failures` attempts."""
    if current_job().attempt <= failures:
        raise ConnectionError("down")


def failures_of(number: int) -> int:
    """Return how often job `number` fails: 1 % of the jobs fail in both attempts, 5 % once."""
    return 2 if number % 100 == 99 else int(number % 20 == 5)


def run_many_jobs(jobs: int) -> dict[str, Any]:
    """Run `jobs` jobs by run_jobs; return how they ended, how long it took, and what the mirror reports."""
    from prefect import flow
    from prefect.runtime import flow_run

    from executor_adapter.prefect import PrefectMirror, run_jobs

    def all_jobs() -> Iterator[Job]:
        for number in range(jobs):
            yield Job(function=work, args=(failures_of(number),), job_id=f"job-{number}", pool="process", retry=ONCE)

    @flow
    def many() -> dict[str, Any]:
        began = time.time()
        mirror = PrefectMirror()
        with JobExecutor(os.cpu_count() or 2, config=Settings()) as executor:
            results = run_jobs(all_jobs(), executor=executor, mirror=mirror)
        report = mirror.close()
        return {
            "flow_run_id": str(flow_run.id),
            "ends": dict(Counter(str(result.status) for result in results)),
            "attempts": dict(Counter(result.attempts for result in results)),
            "began": began,
            "seconds": time.time() - began,
            "complete": report.complete,
            "resent": report.resent,
            "report": str(report),
        }

    return many()
