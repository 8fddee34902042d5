"""A flow of sleeping jobs, to run in a process of its own: `python -m tests.prefect.sleeping_flow 500 NAME`."""

from __future__ import annotations

import sys
import time

from prefect import flow

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import run_jobs


@flow
def sleeping_flow(jobs: int) -> None:
    """Run `jobs` jobs that sleep for ten minutes each."""
    with JobExecutor(2) as executor:
        run_jobs([Job(function=time.sleep, args=(600,), pool="process") for _ in range(jobs)], executor=executor)


if __name__ == "__main__":
    sleeping_flow.with_options(name=sys.argv[2])(int(sys.argv[1]))
