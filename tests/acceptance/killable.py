"""Flows to be killed, one for each way of running jobs. They run by hand, served, or on a worker.

    python killable.py hand stock FOLDER
    python killable.py serve

Each makes a file `FLOW_RUN_ID-PID` in the folder when its jobs are submitted.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prefect import flow, serve, task
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_task, run_jobs

WORKERS = 3
SECONDS = [0.05, 0.4, 1.1, 0.2, 2.5] * 8


def work(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


plain_work = task(work, name="work")
job_work = job_task(work, name="work", pool="process")


def mark_started(folder: str) -> None:
    Path(folder, f"{flow_run.get_id()}-{os.getpid()}").touch()


@flow(task_runner=JobTaskRunner(max_workers=WORKERS, pool="thread"))
def ours(folder: str) -> None:
    futures = [plain_work.submit(seconds) for seconds in SECONDS]
    mark_started(folder)
    for future in futures:
        future.wait()


@flow
def stock(folder: str) -> None:
    with JobExecutor(WORKERS):
        futures = [job_work.submit(seconds) for seconds in SECONDS]
        mark_started(folder)
        for future in futures:
            future.wait()


@flow
def bulk(folder: str) -> None:
    with JobExecutor(WORKERS):
        mark_started(folder)
        run_jobs([Job(function=work, args=(seconds,), pool="process") for seconds in SECONDS])


FLOWS = {"ours": ours, "stock": stock, "bulk": bulk}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*(each.to_deployment(name) for name, each in FLOWS.items()))
    else:
        FLOWS[sys.argv[2]](sys.argv[3])
