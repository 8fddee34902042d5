"""Flows to be cancelled, one for each way of running jobs. They run by hand, served, or on a worker.

    python cancellable.py hand stock FOLDER JOBS
    python cancellable.py serve stock

Each job makes a file `job-NUMBER-PID` in the folder when it starts, and one for a process that it starts itself. The
file `id` has the id of the flow run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from prefect import flow, task
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_task

WORKERS = 2

LONG_SECONDS = 3600.0


def work(folder: str, number: int) -> None:
    Path(folder, f"job-{number}-{os.getpid()}").touch()
    child = subprocess.Popen(["sleep", str(LONG_SECONDS)], start_new_session=True)
    Path(folder, f"child-{number}-{child.pid}").touch()
    time.sleep(LONG_SECONDS)


def mark_started(folder: str) -> None:
    Path(folder, "id").write_text(flow_run.id)
    Path(folder, f"flow-0-{os.getpid()}").touch()


plain_work = task(work, name="work", retries=3)
job_work = job_task(work, name="work", pool="process", retry_attempts=3)


@flow(task_runner=JobTaskRunner(max_workers=WORKERS, pool="process"))
def ours(folder: str, jobs: int) -> None:
    """Run plain tasks under a JobTaskRunner, and wait for them as most flows do."""
    futures = [plain_work.submit(folder, number) for number in range(jobs)]
    mark_started(folder)
    for future in futures:
        future.result()


@flow
def stock(folder: str, jobs: int) -> None:
    """Run job tasks under Prefect's own runner, while the flow sleeps, which no job's end interrupts."""
    with JobExecutor(WORKERS):
        for number in range(jobs):
            job_work.submit(folder, number)
        mark_started(folder)
        time.sleep(LONG_SECONDS)


@flow
def bulk(folder: str, jobs: int) -> None:
    """Run jobs in bulk, without tasks."""
    from executor_adapter.prefect import run_jobs

    mark_started(folder)
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
