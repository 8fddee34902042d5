"""Measures flows of many no-op tasks under Prefect's task runners and ours, each in a new process.

Prefect is imported inside the functions, because it reads the server's address when it is imported.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from tests.benchmarks.functions import nothing

WORKERS = 4
Runner = Literal["jobs", "thread jobs", "threads", "processes"]


def measure_runner(runner: Runner, tasks: int) -> dict[str, Any]:
    """Measure tasks per second with warm workers, and the time until the flow ends after its last result."""
    from prefect import flow, task
    from prefect.runtime import flow_run

    figures: dict[str, Any] = {}
    no_op = task(nothing)

    @flow(task_runner=_task_runner(runner))
    def many() -> None:
        for future in [no_op.submit() for _ in range(2 * WORKERS)]:  # start the workers
            future.result()
        began = time.monotonic()
        for future in [no_op.submit() for _ in range(tasks)]:
            future.result()
        ended = time.monotonic()
        figures.update(results=tasks / (ended - began), ended=ended, flow_run_id=str(flow_run.id))

    many()
    figures["recording"] = time.monotonic() - figures.pop("ended")
    return figures


def _task_runner(runner: Runner) -> Any:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    from executor_adapter.prefect import JobTaskRunner

    match runner:
        case "jobs":
            return JobTaskRunner(WORKERS, pool="process")
        case "thread jobs":
            return JobTaskRunner(WORKERS, pool="thread")
        case "threads":
            return ThreadPoolTaskRunner(4)
        case "processes":
            return ProcessPoolTaskRunner(WORKERS)
