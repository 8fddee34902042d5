"""Runs four flows at once, one for each way of running jobs: `python -m tests.prefect.killed_flows FILE`.

Each has two short jobs and four that sleep, in two workers. FILE gets the ids of the flow runs, one a line.
"""

from __future__ import annotations

import sys
import threading
import time

from prefect import Task, flow, task
from prefect.runtime import flow_run

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_task, run_jobs

SECONDS = [0.0, 0.0, 600.0, 600.0, 600.0, 600.0]


def work(seconds: float) -> None:
    time.sleep(seconds)


job_work = job_task(work, name="work", pool="thread")
plain_work = task(work, name="work")


@flow
def bulk(file: str) -> None:
    note(file)
    with JobExecutor(2):
        run_jobs([Job(function=work, args=(seconds,), pool="process") for seconds in SECONDS])


@flow
def grouped(file: str) -> None:
    note(file)
    with JobExecutor(2):
        run_jobs([Job(function=work, args=(seconds,), pool="thread") for seconds in SECONDS], group=1)


@flow
def job_tasks(file: str) -> None:
    note(file)
    with JobExecutor(2):
        submit_all(job_work)


@flow(task_runner=JobTaskRunner(max_workers=2, pool="thread"))
def plain_tasks(file: str) -> None:
    note(file)
    submit_all(plain_work)


def submit_all(work: Task[[float], None]) -> None:
    """Submit the short ones first: tasks that are submitted at once may begin in any order."""
    for seconds in (SECONDS[:2], SECONDS[2:]):
        for future in [work.submit(each) for each in seconds]:
            future.wait()


def note(file: str) -> None:
    with open(file, "a") as ids:
        ids.write(f"{flow_run.get_id()}\n")


if __name__ == "__main__":
    threads = [threading.Thread(target=each, args=(sys.argv[1],)) for each in (bulk, grouped, job_tasks, plain_tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
