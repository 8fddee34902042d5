"""Measures an idle executor in a new process. The main thread, which only sleeps, is not counted."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.worker.process_tree import children, tree
from tests.benchmarks.cpu import cpu_seconds
from tests.benchmarks.functions import nothing, nothing_on_loop


def measure_idle(seconds: float) -> dict[str, float]:
    """Measure CPU seconds and voluntary context switches of all threads and processes while there are no jobs."""
    with JobExecutor(4, config=Settings()) as executor:
        for _ in range(20):
            futures = [executor.submit(Job(function=nothing, pool="process"))]
            futures += [executor.submit(Job(function=nothing, pool="thread"))]
            futures += [executor.submit(Job(function=nothing_on_loop))]
            for future in futures:
                future.result()
        time.sleep(2.0)  # wait for the spare worker
        before = _usage()
        time.sleep(seconds)
        after = _usage()
    return {name: after[name] - before[name] for name in after}


def _usage() -> dict[str, float]:
    tasks = list(_tasks())
    return {
        "cpu": sum(cpu_seconds(task) for task in tasks),
        "switches": sum(_voluntary_switches(task) for task in tasks),
        "tasks": len(tasks),
    }


def _tasks() -> Iterator[Path]:
    below = [pid for child in children(os.getpid()) for pid in tree(child)]
    for pid in (os.getpid(), *below):
        yield from (task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(os.getpid()))


def _voluntary_switches(task: Path) -> int:
    (line,) = [line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary_ctxt")]
    return int(line.split()[1])
