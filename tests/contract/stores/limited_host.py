"""A program with jobs of a limited tool: `python -m ....limited_host URL NUMBER LIMIT SECONDS LOG`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from executor_adapter import Job, JobExecutor, ToolLimit
from executor_adapter.config import Settings

TOOL = "limited"
THIS_MODULE = "tests.contract.stores.limited_host"


def run_logged(path: str, seconds: float) -> None:
    """Sleep, and add the monotonic times at which that began and ended to a file."""
    began = time.monotonic()
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write(f"{began} {time.monotonic()}\n")


def runs_in(folder: Path) -> list[tuple[float, float]]:
    """Return when the runs began and ended that programs have written, in order."""
    lines = [line for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    return sorted((float(began), float(ended)) for began, ended in map(str.split, lines))


def most_at_once(runs: list[tuple[float, float]]) -> int:
    """Return how many runs went on at the same time, at most."""
    changes = sorted([(began, 1) for began, _ in runs] + [(ended, -1) for _, ended in runs])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def main(url: str, number: str, limit: str, seconds: str, log: str) -> None:
    limits = {TOOL: ToolLimit(max_concurrent=int(limit))}
    with JobExecutor(4, config=Settings(), store=url, queue=log, tool_limits=limits) as executor:
        print("ready", flush=True)
        sys.stdin.readline()
        jobs = [
            Job(
                function=f"{THIS_MODULE}:run_logged", args=(f"{log}.log", float(seconds)), tool_name=TOOL, pool="thread"
            )
            for _ in range(int(number))
        ]
        for future in [executor.submit(job) for job in jobs]:
            future.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
