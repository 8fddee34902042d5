"""Flows that many workers share: each run writes a portion of a data set, one file for each of its parts."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow

from executor_adapter import JobExecutor
from executor_adapter.prefect import job_task

PARTS = 4


@job_task(pool="process", retry_attempts=0)
def write_part(folder: str, number: int, part: int, seconds: float) -> int:
    """Write one file, whole or not at all, so that it can be written twice."""
    time.sleep(seconds)
    file = Path(folder, f"{number:02}-{part}")
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(str(number * PARTS + part))
    temporary.rename(file)
    return part


@flow
def portions(folder: str, number: int = 0, seconds: float = 0.5) -> None:
    """Write one portion.

    Args:
        folder: The directory of the files.
        number: The number of the portion.
        seconds: How long each part takes.
    """
    with JobExecutor(2):
        parts = [write_part.submit(folder, number, part, seconds) for part in range(PARTS)]
        for part in parts:
            part.result()


def is_whole(folder: Path, count: int) -> bool:
    """Return whether the directory holds `count` whole portions, and nothing else but what a killed process left."""
    found = {file.name: file.read_text() for file in folder.iterdir() if not file.suffix}
    return found == {
        f"{number:02}-{part}": str(number * PARTS + part) for number in range(count) for part in range(PARTS)
    }
