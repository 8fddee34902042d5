"""Measures flows of many no-op jobs or tasks, in a new process and against the server of its environment.

Prefect is imported inside the functions, because it reads that environment when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Any, Literal
from uuid import UUID

import httpx

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.worker.process_tree import resident
from tests.benchmarks.functions import nothing

WORKERS = os.cpu_count() or 2
Runner = Literal["threads", "processes"]


def measure_run_jobs(
    jobs: int, history: Literal["auto", "full", "final"], *, weigh: bool = False, group: int | None = None
) -> dict[str, float]:
    """Measure run_jobs: jobs per second until the last result and until the last record, and CPU microseconds per job.

    With `weigh`, also the peak memory in bytes, sampled five times a second, which uses CPU as well.
    """
    from prefect import flow

    from executor_adapter.prefect import PrefectMirror, run_jobs

    figures: dict[str, float] = {}

    @flow
    def bulk() -> None:
        last = [0.0]

        def see(transition: Any) -> None:
            last[0] = transition.at

        mirror = PrefectMirror(history=history)
        with JobExecutor(WORKERS, config=Settings(), observers=[see]) as executor:
            _warm_up(executor)
            began, cpu, idle = time.time(), time.process_time(), resident(os.getpid())
            peak = _PeakMemory() if weigh else None
            many = (Job(function=nothing, pool="process") for _ in range(jobs))
            results = run_jobs(many, executor=executor, mirror=mirror, group=group)
            ended = time.time()
            report = mirror.close()
        assert report.complete, str(report)
        assert len(results) == jobs
        figures.update(
            results=jobs / (last[0] - began),
            recorded=jobs / (ended - began),
            cpu=(time.process_time() - cpu) / jobs * 1e6,
            memory=peak.stop() - idle if peak is not None else 0.0,
            omitted=report.omitted,
        )

    bulk()
    return figures


def measure_ceiling(jobs: int, history: Literal["auto", "full"]) -> dict[str, float]:
    """Measure the jobs per second that the server can record, which no client can exceed.

    All events are sent at once, and nothing is requested until then: with "auto" only the final state of each job, with
    "full" its three states.
    """
    from prefect import flow
    from prefect.runtime import flow_run

    from executor_adapter import JobStatus
    from executor_adapter.prefect.mirror.events import flow_run_facts
    from executor_adapter.prefect.mirror.sender import MAX_BATCH_SIZE
    from executor_adapter.prefect.mirror.server import ServerApi, read_flow_run_facts
    from executor_adapter.prefect.mirror.timeline import JobHistory, Step, task_run_id

    figures: dict[str, float] = {}
    passed = (JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED)

    @flow
    def all_at_once() -> None:
        facts, flow_run_id, bodies = read_flow_run_facts(flow_run_facts()), UUID(str(flow_run.id)), []
        for _ in range(jobs):
            job = Job(function=nothing)
            one = JobHistory(job, task_run_id(flow_run_id, job))
            for status in passed:
                one.add(Step(status, time.time(), int(status is not JobStatus.PENDING), None, None))
            if history == "auto":
                one.skip_intermediate()
            bodies += [one.next_event(facts).body for _ in range(len(one.unsent))]
        with ServerApi.connected() as api:
            began = time.time()
            for start in range(0, len(bodies), MAX_BATCH_SIZE):
                api.send(bodies[start : start + MAX_BATCH_SIZE])
            _wait_until_completed(str(flow_run_id), jobs)
            figures.update(recorded=jobs / (time.time() - began))

    all_at_once()
    return figures


def measure_bare_jobs(jobs: int) -> dict[str, float]:
    """Measure the same jobs without a mirror: the cost of the executor itself."""
    with JobExecutor(WORKERS, config=Settings()) as executor:
        _warm_up(executor)
        began, cpu = time.time(), time.process_time()
        futures = [executor.submit(Job(function=nothing, pool="process")) for _ in range(jobs)]
        for future in futures:
            future.result()
        return {"results": jobs / (time.time() - began), "cpu": (time.process_time() - cpu) / jobs * 1e6}


def measure_task_runner(runner: Runner, tasks: int) -> dict[str, float]:
    """Measure a task runner of Prefect: tasks per second until the last result and until the last record."""
    from prefect import flow, task
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    figures: dict[str, float] = {}
    task_runner: Any = ThreadPoolTaskRunner(4) if runner == "threads" else ProcessPoolTaskRunner(WORKERS)
    no_op = task(nothing)

    @flow(task_runner=task_runner)
    def bulk() -> str:
        for future in [no_op.submit() for _ in range(2 * WORKERS)]:  # start the workers
            future.result()
        began = time.time()
        for future in [no_op.submit() for _ in range(tasks)]:
            future.result()
        figures.update(began=began, results=tasks / (time.time() - began))
        from prefect.runtime import flow_run

        return str(flow_run.id)

    flow_run_id = bulk()
    _wait_until_completed(flow_run_id, tasks + 2 * WORKERS)
    figures["recorded"] = tasks / (time.time() - figures.pop("began"))
    return figures


def _wait_until_completed(flow_run_id: str, task_runs: int) -> None:
    """Wait until the server has recorded so many Completed task runs of the flow run."""
    from prefect.client.orchestration import get_client

    body = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    with get_client(sync_client=True) as client:
        recorded = 0
        while recorded < task_runs:
            time.sleep(0.25)
            with contextlib.suppress(httpx.RemoteProtocolError):  # It closes what was idle.
                recorded = client.request("POST", "/task_runs/count", json=body).json()


class _PeakMemory(threading.Thread):
    """Samples the memory of this process and keeps the maximum."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._max_bytes = 0
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.2):
            self._max_bytes = max(self._max_bytes, resident(os.getpid()))

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return max(self._max_bytes, resident(os.getpid()))


def _warm_up(executor: JobExecutor) -> None:
    for future in [executor.submit(Job(function=nothing, pool="process")) for _ in range(1_000)]:
        future.result()
