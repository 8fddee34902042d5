"""Measures flows of many no-op tasks under Prefect's task runners and ours, each in a new process.

Prefect is imported inside the functions, because it reads the server's address when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any, Literal

from tests.benchmarks.clusters import EngineName
from tests.benchmarks.functions import nothing, sleep_and_note

WORKERS = 4
Runner = Literal["jobs", "thread jobs", "threads", "processes"]
ClusterRunner = Literal["jobs", "theirs"]


def measure_runner(runner: Runner, tasks: int) -> dict[str, Any]:
    """Measure tasks per second with warm workers, and the time until the flow ends after its last result."""
    return _measure(_task_runner(runner), tasks)


def measure_on_cluster(engine: EngineName, runner: ClusterRunner, address: str, tasks: int) -> dict[str, Any]:
    """Measure the same on a cluster."""
    return _measure(_cluster_task_runner(engine, runner, address), tasks)


def measure_killed_worker(engine: EngineName, runner: ClusterRunner, address: str, pid: int, folder: str) -> str:
    """Kill a process while all slots run a task of a flow, wait until the flow ends, and return the flow run's id."""
    from prefect import flow, task
    from prefect.runtime import flow_run

    ids: list[str] = []
    sleeper = task(retries=2)(sleep_and_note)

    @flow(task_runner=_cluster_task_runner(engine, runner, address))
    def some() -> None:
        ids.append(str(flow_run.id))
        futures = [sleeper.submit(folder, 3.0) for _ in range(2 * WORKERS)]
        until = time.monotonic() + 60
        while len(os.listdir(folder)) < WORKERS and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        for future in futures:
            future.wait(60)

    with contextlib.suppress(Exception):  # Some tasks may have failed: the server has how all of them ended.
        some()
    return ids[0]


def _measure(task_runner: Any, tasks: int) -> dict[str, Any]:
    from prefect import flow, task
    from prefect.runtime import flow_run

    figures: dict[str, Any] = {}
    no_op = task(nothing)

    @flow(task_runner=task_runner)
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


def _cluster_task_runner(engine: EngineName, runner: ClusterRunner, address: str) -> Any:
    from executor_adapter.prefect import JobTaskRunner

    if runner == "jobs":
        return JobTaskRunner(WORKERS, pool=engine, address=address)
    if engine == "dask":
        from prefect_dask.task_runners import DaskTaskRunner

        return DaskTaskRunner(address=address)
    from prefect_ray import RayTaskRunner

    return RayTaskRunner(address=address)
