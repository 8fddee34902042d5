"""A program that is stopped while it runs a job: `python -m tests.contract.stores.stopped_host URL LEASE RUNS`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.exceptions import JobCancelledError


def run_until_go(runs: str) -> str:
    """Note the worker's pid, then the time again and again, until the file `go` exists beside the notes."""
    with Path(runs).open("a") as file:
        file.write(f"{os.getpid()}\n")
    while not Path(runs).with_name("go").exists():
        Path(f"{runs}.{os.getpid()}").write_text(str(time.monotonic()))
        time.sleep(0.01)
    return "went"


def main(url: str, lease: str, runs: str) -> None:
    """Run one job, and print what becomes of it."""
    from tests.contract.stores import stopped_host

    config = Settings(store=StoreSettings(lease=float(lease)))
    with JobExecutor(1, config=config, store=url) as executor:
        future = executor.submit(
            Job(job_id=Path(runs).stem, function=stopped_host.run_until_go, args=(runs,), pool="process")
        )
        try:
            print(future.result(), len(future.job.attempts))
        except JobCancelledError:
            print("cancelled", len(future.job.attempts))


if __name__ == "__main__":
    main(*sys.argv[1:])
