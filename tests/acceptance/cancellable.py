"""Flows to be cancelled, one a way of running jobs; run by hand, served, or deployed to a worker's pool.

    python cancellable.py hand stock FOLDER JOBS
    python cancellable.py serve stock

Each job leaves a file `job-NUMBER-PID` in the folder when it begins, and one for a process of its own that it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from prefect import flow, task

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_task

WORKERS = 2

LONG = 120.0


def work(folder: str, number: int) -> None:
    Path(folder, f"job-{number}-{os.getpid()}").touch()
    child = subprocess.Popen(["sleep", str(LONG)], start_new_session=True)
    Path(folder, f"child-{number}-{child.pid}").touch()
    time.sleep(LONG)


def began(folder: str) -> None:
    Path(folder, f"flow-0-{os.getpid()}").touch()


plain_work = task(work, name="work", retries=3)
job_work = job_task(work, name="work", pool="process", retry_attempts=3)


@flow(task_runner=JobTaskRunner(max_workers=WORKERS, pool="process"))
def ours(folder: str, jobs: int) -> None:
    """Plain tasks under a JobTaskRunner, waited for as most flows do."""
    futures = [plain_work.submit(folder, number) for number in range(jobs)]
    began(folder)
    for future in futures:
        future.result()


@flow
def stock(folder: str, jobs: int) -> None:
    """Job tasks under Prefect's own runner; the flow sleeps meanwhile, and none of its jobs' ends wakes it."""
    with JobExecutor(WORKERS):
        for number in range(jobs):
            job_work.submit(folder, number)
        began(folder)
        time.sleep(LONG)


@flow
def bulk(folder: str, jobs: int) -> None:
    """Jobs in bulk, without a task."""
    from executor_adapter.prefect import run_jobs

    began(folder)
    with JobExecutor(WORKERS) as executor:
        run_jobs(
            (Job(function=work, args=(folder, number), pool="process", retry_attempts=3) for number in range(jobs)),
            executor=executor,
        )


FLOWS = {"ours": ours, "stock": stock, "bulk": bulk}

if __name__ == "__main__":
    place, name, *arguments = sys.argv[1:]
    if place == "serve":
        FLOWS[name].serve(name=name)
    else:
        FLOWS[name](arguments[0], int(arguments[1]))
