"""A flow, run by hand, of so many jobs that sleep: `python -m tests.prefect.sleepers 500`."""

from __future__ import annotations

import sys
import time

from prefect import flow

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import run_jobs


@flow
def sleepers(jobs: int) -> None:
    with JobExecutor(2) as executor:
        run_jobs([Job(function=time.sleep, args=(600,), pool="process") for _ in range(jobs)], executor=executor)


if __name__ == "__main__":
    sleepers(int(sys.argv[1]))
