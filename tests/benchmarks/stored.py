"""Measures executors with and without a store, and a store with a long history."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.job.ids import uuid7
from executor_adapter.job.results import Attempt
from executor_adapter.job.status import JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore, open_store
from executor_adapter.store.host import new_host
from tests.benchmarks.contestants import POLICY
from tests.benchmarks.figures import Figures, in_turn
from tests.benchmarks.functions import nothing

WORKERS = 4
DAY = 86_400.0


def measure_store_overhead(jobs: int, urls: dict[str, str]) -> dict[str, Figures]:
    """Measure microseconds per job, from the first submission until all jobs have finished and are in the store."""
    with ExitStack() as stack, TemporaryDirectory() as directory:
        stores = {"none": None, "memory": "memory:", "sqlite": f"sqlite:///{directory}/jobs.db"} | urls
        executors = {
            name: stack.enter_context(JobExecutor(WORKERS, config=Settings(), store=url))
            for name, url in stores.items()
        }
        measured = {name: _microseconds(executor, jobs) for name, executor in executors.items()}
        for measure in measured.values():
            measure()
        return in_turn(measured, rounds=7)


def _microseconds(executor: JobExecutor, jobs: int) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        wait(
            [executor.submit(Job(function=nothing, pool="thread", max_runtime=60.0, retry=POLICY)) for _ in range(jobs)]
        )
        executor.flush()
        return (time.perf_counter() - began) / jobs * 1e6

    return measure


def measure_history(jobs: int) -> dict[str, float]:
    """Measure milliseconds: lists with a filter and paging, and jobs during a clean-up of half the history.

    For the jobs these are the longest times to run, and to be written to the store.
    """
    with TemporaryDirectory() as directory:
        store = open_store(f"sqlite:///{directory}/jobs.db")
        _fill(store, jobs)
        figures = {
            name: _milliseconds(functools.partial(store.find, what, **how)) for name, (what, how) in LISTS.items()
        }
        figures |= _clean_up(store, f"sqlite:///{directory}/jobs.db")
        figures["megabytes"] = (Path(directory) / "jobs.db").stat().st_size / 1e6
        store.close()
        return figures


_FAILED = frozenset({JobStatus.FAILED})
LISTS: dict[str, tuple[JobFilter, dict[str, Any]]] = {
    "all": (JobFilter(), {"limit": 50}),
    "failed": (JobFilter(statuses=_FAILED), {"limit": 50}),
    "failed, page 200": (JobFilter(statuses=_FAILED), {"limit": 50, "offset": 10_000}),
    "one tool": (JobFilter(tool_name="tool3"), {"limit": 50}),
    "one tool, failed": (JobFilter(tool_name="tool3", statuses=_FAILED), {"limit": 50}),
    "one type": (JobFilter(job_type="collection"), {"limit": 50}),
    "one queue": (JobFilter(queue="collection"), {"limit": 50}),
    "one queue, failed": (JobFilter(queue="collection", statuses=_FAILED), {"limit": 50}),
    "queue, type, tool, failed": (
        JobFilter(queue="collection", job_type="collection", tool_name="tool0", statuses=_FAILED),
        {"limit": 50},
    ),
    "failed or cancelled": (JobFilter(statuses=_FAILED | {JobStatus.CANCELLED}), {"limit": 50}),
    "quarantined": (JobFilter(quarantined=True), {"limit": 50}),
    "last hour": (JobFilter(created_from=time.time() - 3600), {"limit": 50}),
}


def _fill(store: JobStore, jobs: int) -> None:
    """Write two days of jobs of ten tools to the store; 5 % of them failed."""
    host = new_host()
    store.register(host, lease=600)
    began = time.time() - 2 * DAY
    numbers = iter(range(jobs))
    while batch := list(itertools.islice(numbers, 5_000)):
        store.write(host.host_id, [_past_record(n, began + n / jobs * 2 * DAY, host.host_id) for n in batch], lease=600)
    store.leave(host.host_id)


def _past_record(number: int, at: float, host: str) -> JobRecord:
    failed = number % 20 == 0
    return JobRecord(
        job_id=uuid7(),
        queue="collection" if number % 3 else "processing",
        job_type="collection" if number % 3 else "processing",
        tool_name=f"tool{number % 10}",
        function="tests.benchmarks.functions:nothing",
        status=JobStatus.FAILED if failed else JobStatus.COMPLETED,
        attempt=1,
        created_at=at,
        started_at=at + 1,
        completed_at=at + 60,
        error_code="NETWORK_ERROR" if failed else None,
        error_message="could not be reached" if failed else None,
        attempts=(Attempt(number=1, pool="thread", pid=None, queue_seconds=1.0, run_seconds=59.0),),
        metadata={"collection_type": "manual"},
        call='{"function": "tests.benchmarks.functions:nothing", "kwargs": {"tool_name": "tool"}}',
        host=host,
    )


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _clean_up(store: JobStore, url: str) -> dict[str, float]:
    deleted: list[int] = []
    cleaning = threading.Thread(target=lambda: deleted.append(store.cleanup(24)))
    with JobExecutor(WORKERS, config=Settings(), store=url) as executor:
        idle = [_one_job(executor) for _ in range(500)]
        began = time.perf_counter()
        cleaning.start()
        during = []
        while cleaning.is_alive():
            during.append(_one_job(executor))
        took = time.perf_counter() - began
    figures = {"deleted": deleted[0], "cleanup seconds": took}
    for name, jobs in (("", during), (", idle", idle)):
        figures |= {f"longest run{name}": max(ran for ran, _ in jobs)}
        figures |= {f"longest record{name}": max(recorded for _, recorded in jobs)}
    return figures


def _one_job(executor: JobExecutor) -> tuple[float, float]:
    """Run a job; return the milliseconds until it finished, and from then until it was in the store."""
    ran = _milliseconds(lambda: executor.run(Job(function=nothing, pool="thread")))
    recorded = _milliseconds(executor.flush)
    time.sleep(0.002)
    return ran, recorded
