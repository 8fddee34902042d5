"""A flow that goes on when its server is gone: `python -m tests.prefect.orphaned_flow DIRECTORY`.

It makes the file `begun` in the directory, and submits its tasks once the file `gone` is there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow, task

from executor_adapter.prefect import JobTaskRunner

TASKS = 20


@task
def plain(x: int) -> int:
    """Return the next number."""
    return x + 1


@flow(task_runner=JobTaskRunner(2, pool="thread"))
def orphaned(directory: Path) -> None:
    """Run the tasks, and check their results."""
    (directory / "begun").touch()
    while not (directory / "gone").exists():
        time.sleep(0.05)
    assert [future.result() for future in [plain.submit(x) for x in range(TASKS)]] == list(range(1, TASKS + 1))


if __name__ == "__main__":
    orphaned(Path(sys.argv[1]))
