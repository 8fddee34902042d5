"""Flows of many no-op jobs or tasks, to be measured in a process of their own against the server of its environment.

Prefect is imported inside, once that environment counts.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Literal

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.pools.process_tree import resident
from tests.benchmarks.functions import nothing

WORKERS = os.cpu_count() or 2
Runner = Literal["threads", "processes"]


def measure_run_jobs(jobs: int, history: Literal["auto", "full", "final"]) -> dict[str, float]:
    """Jobs a second to the last result, and until the server knows the last final state; microseconds of CPU a job."""
    from prefect import flow

    from executor_adapter.prefect import PrefectMirror, run_jobs

    told: dict[str, float] = {}

    @flow
    def bulk() -> None:
        last = [0.0]

        def see(transition: Any) -> None:
            last[0] = transition.at

        mirror = PrefectMirror(history=history)
        with JobExecutor(WORKERS, config=Settings(), observers=[see]) as executor:
            _warm(executor)
            began, cpu, idle = time.time(), time.process_time(), resident(os.getpid())
            peak = _Peak()
            results = run_jobs(
                (Job(function=nothing, pool="process") for _ in range(jobs)), executor=executor, mirror=mirror
            )
            ended = time.time()
            report = mirror.close()
        assert report.complete, str(report)
        assert len(results) == jobs
        told.update(
            results=jobs / (last[0] - began),
            recorded=jobs / (ended - began),
            cpu=(time.process_time() - cpu) / jobs * 1e6,
            memory=peak.stop() - idle,
            left_out=report.left_out,
        )

    bulk()
    return told


def measure_bare_jobs(jobs: int) -> dict[str, float]:
    """The same without a mirror: what the executor itself takes."""
    with JobExecutor(WORKERS, config=Settings()) as executor:
        _warm(executor)
        began, cpu = time.time(), time.process_time()
        futures = [executor.submit(Job(function=nothing, pool="process")) for _ in range(jobs)]
        for future in futures:
            future.result()
        return {"results": jobs / (time.time() - began), "cpu": (time.process_time() - cpu) / jobs * 1e6}


def measure_task_runner(runner: Runner, tasks: int) -> dict[str, float]:
    """Tasks a second of one of Prefect's own runners, to the last result, and until the server knows the last."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    told: dict[str, float] = {}
    task_runner: Any = ThreadPoolTaskRunner(4) if runner == "threads" else ProcessPoolTaskRunner(WORKERS)
    no_op = task(nothing)

    @flow(task_runner=task_runner)
    def bulk() -> str:
        for future in [no_op.submit() for _ in range(2 * WORKERS)]:  # until its workers are up
            future.result()
        began = time.time()
        for future in [no_op.submit() for _ in range(tasks)]:
            future.result()
        told.update(began=began, results=tasks / (time.time() - began))
        from prefect.runtime import flow_run

        return str(flow_run.id)

    flow_run_id = bulk()
    with get_client(sync_client=True) as client:
        body = {
            "flow_runs": {"id": {"any_": [flow_run_id]}},
            "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        while client.request("POST", "/task_runs/count", json=body).json() < tasks + 2 * WORKERS:
            time.sleep(0.25)
    told["recorded"] = tasks / (time.time() - told.pop("began"))
    return told


class _Peak(threading.Thread):
    """The most memory that this process held since."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._most = 0
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.2):
            self._most = max(self._most, resident(os.getpid()))

    def stop(self) -> int:
        self._over.set()
        self.join()
        return max(self._most, resident(os.getpid()))


def _warm(executor: JobExecutor) -> None:
    for future in [executor.submit(Job(function=nothing, pool="process")) for _ in range(1_000)]:
        future.result()
