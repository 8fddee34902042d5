"""Flows whose process is evicted. Their jobs note each start in a folder, and wait there in the first execution."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import job_task, run_jobs

WORKERS = 2
JOBS = 5
QUICK = 1
"""Jobs that end in the first execution; the others hang there."""


def work(number: int, folder: str, execution: int) -> int:
    Path(folder, f"{execution}-{number}-{os.getpid()}").touch()
    if number >= QUICK and execution == 1:
        time.sleep(600)
    return number


job_work = job_task(work, name="work", pool="process", retry_attempts=0)


@flow
def bulk(folder: str) -> list[int]:
    execution = int(flow_run.get_run_count())
    with JobExecutor(WORKERS):
        jobs = [
            Job(function=work, args=(number, folder, execution), job_id=str(number), pool="process", retry_attempts=0)
            for number in range(JOBS)
        ]
        return [result.value for result in run_jobs(jobs)]


@flow
def tasks(folder: str) -> list[int]:
    execution = int(flow_run.get_run_count())
    with JobExecutor(WORKERS):
        # Task runs that start at once reach the executor in any order, and those that hang would take all its slots.
        quick = [job_work.submit(number, folder, execution).result() for number in range(QUICK)]
        futures = [job_work.submit(number, folder, execution) for number in range(QUICK, JOBS)]
        return quick + [future.result() for future in futures]
