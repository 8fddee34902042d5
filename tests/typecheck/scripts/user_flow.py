"""A user's flow, which every type checker must accept."""

from __future__ import annotations

from typing import Any, Unpack, assert_type

from prefect import State, flow, task
from prefect.futures import PrefectFuture

from executor_adapter import Job, JobResult, RetryPolicy
from executor_adapter.prefect import JobTask, JobTaskOptions, JobTaskRunner, arun_jobs, job_options, job_task, run_jobs


@job_task
def bare(tool: str) -> int:
    return len(tool)


@job_task(
    pool="process",
    max_runtime=600,
    memory_limit="2GiB",
    retry=RetryPolicy(retry_attempts=1),
    dedupe_key="{tool}",
    name="collect",
    tags=["nightly"],
    log_prints=True,
)
def collect(tool: str, pages: int = 1) -> list[int]:
    return [len(tool)] * pages


@job_task(retries=2, retry_delay_seconds=[1, 10], timeout_seconds=5)
async def fetch(page: int) -> bytes:
    return bytes(page)


@job_options(pool="process", memory_limit="1GiB")
@task(retries=2, timeout_seconds=600)
def aggregate(rows: list[int]) -> int:
    return sum(rows)


def tuned(**options: Unpack[JobTaskOptions]) -> Any:
    return collect.with_options(**options)


@flow(task_runner=JobTaskRunner(max_workers=4, pool="process", max_runtime=60))
def nightly() -> int:
    assert_type(bare("a"), int)
    assert_type(collect("a", pages=2), list[int])
    assert_type(collect.submit("a"), PrefectFuture[list[int]])
    assert_type(collect.submit("a").result(), list[int])
    assert_type(collect.submit("a", return_state=True), State[list[int]])
    assert_type(collect.map(["a", "b"]).result(), list[list[int]])
    assert_type(fetch.submit(1).result(), bytes)
    assert_type(fetch.submit(1, return_state=True), State[bytes])
    assert_type(fetch.map([1, 2]).result(), list[bytes])
    assert_type(fetch.map([1, 2], return_state=True, wait_for=[]), list[State[bytes]])
    size = bare.submit("a")
    assert_type(fetch.submit(size, wait_for=[size]), PrefectFuture[bytes])
    assert_type(collect.with_options(pool="thread", max_runtime=None)("a"), list[int])
    collect_twice: JobTask[[str, int], list[int]] = collect.with_options(name="twice")
    results = run_jobs(Job(function=area, args=(page, 2)) for page in range(3))
    assert_type(results[0], JobResult[Any])
    collect_twice("a", 2)
    return aggregate(collect("a")) + len([result.unwrap() for result in results])


def area(width: float, height: float) -> float:
    return width * height


@flow
async def nightly_async() -> bytes:
    await arun_jobs([Job(function=area, args=(1, 2))])
    return await fetch(3)
