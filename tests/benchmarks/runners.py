"""Flows of many no-op tasks under Prefect's task runners and ours, to be measured in a process of their own.

Prefect is imported inside, once the environment that says which server it is to use counts.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from tests.benchmarks.functions import nothing

WORKERS = 4
Runner = Literal["jobs", "threads", "processes"]


def measure_runner(runner: Runner, tasks: int) -> dict[str, Any]:
    """Tasks a second to the last result, workers warm; how long the flow then took to end; and the flow run's id."""
    from prefect import flow, task
    from prefect.runtime import flow_run

    told: dict[str, Any] = {}
    no_op = task(nothing)

    @flow(task_runner=_made(runner))
    def many() -> None:
        for future in [no_op.submit() for _ in range(2 * WORKERS)]:  # until its workers are up
            future.result()
        began = time.monotonic()
        for future in [no_op.submit() for _ in range(tasks)]:
            future.result()
        ended = time.monotonic()
        told.update(results=tasks / (ended - began), ended=ended, flow_run_id=str(flow_run.id))

    many()
    told["recording"] = time.monotonic() - told.pop("ended")
    return told


def _made(runner: Runner) -> Any:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    from executor_adapter.prefect import JobTaskRunner

    match runner:
        case "jobs":
            return JobTaskRunner(WORKERS, pool="process")
        case "threads":
            return ThreadPoolTaskRunner(4)
        case "processes":
            return ProcessPoolTaskRunner(WORKERS)
