"""A user's program without Prefect, which every type checker must accept."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from typing import Any, Unpack, assert_type

from executor_adapter import (
    Attempt,
    Job,
    JobExecutor,
    JobFuture,
    JobOptions,
    JobResult,
    JobStatus,
    Progress,
    RetryPolicy,
    RetryRule,
    ToolLimit,
    Transition,
    current_job,
)
from executor_adapter.exceptions import DataCollectionException, JobTimeoutError


def area(width: float, height: float) -> float:
    return width * height


async def fetch(page: int, *, size: int = 100) -> bytes:
    current_job().progress(page, size)
    return bytes(page)


job = Job(
    function=area,
    args=(3, 4),
    kwargs={},
    pool="process",
    max_runtime=60,
    memory_limit="1GiB",
    retry=RetryPolicy(
        retry_attempts=2, delays=(1, 2.5), rules=(RetryRule(codes=("NETWORK_ERROR",), action="retry", memory_factor=2),)
    ),
    metadata={"stage": "raw"},
)
by_reference = Job(function="package.module:function", args=[1], memory_limit=1 << 30, max_runtime=None, job_id="a")
assert_type(job.status, JobStatus)
assert_type(job.started_at, datetime.datetime | None)
assert_type(job.attempts, tuple[Attempt, ...])
assert_type(job.progress, Progress | None)
assert_type(job.model_copy(update={"priority": 1}), Job)


class PageJob(Job):
    """A job with a field of its own."""

    page: int = 0


assert_type(PageJob(function=area, page=3).page, int)


def observe(transition: Transition) -> None:
    print(transition.job.job_id, transition.status)


with JobExecutor(4, observers=[observe], tool_limits={"api": ToolLimit(max_concurrent=2)}, store="memory") as executor:
    assert_type(executor, JobExecutor)
    assert_type(executor.submit(job), JobFuture[Any])
    executor.run(job)

    assert_type(executor.call(area, 3, height=4), JobFuture[float])
    assert_type(executor.call(area, 3, height=4).result(timeout=200), float)
    assert_type(executor.call(fetch, 1, size=10), JobFuture[bytes])
    assert_type(executor.call("package.module:function", 1), JobFuture[Any])
    assert_type(executor.options(pool="process", memory_limit="1GiB").call(area, 3, 4), JobFuture[float])

    futures = [executor.call(area, side, side) for side in range(3)]
    for future in as_completed(futures):
        assert_type(future.result(), float)
    done, _ = wait(futures, return_when=FIRST_COMPLETED)
    assert_type(done, set[Future[float]])

    assert_type(executor.map(area, [1, 2], [3, 4], pool="thread", window=2), Iterator[JobResult[float]])
    assert_type(executor.map(fetch, range(9), ordered=False, kwargs={"size": 1}), Iterator[JobResult[bytes]])
    for result in executor.map(area, [1, 2], [3, 4]):
        assert_type(result.value, float | None)
        assert_type(result.unwrap(), float)
        assert_type(result.error, BaseException | None)
    covariant: JobResult[float | str] = next(executor.map(area, [1], [2]))

    with executor.as_executor(pool="process", max_runtime=60) as pool:
        assert_type(pool.submit(area, 3, 4), JobFuture[float])
        assert_type(pool.map(area, [1, 2], [3, 4]), Iterator[float])


async def main() -> None:
    async with JobExecutor() as executor:
        assert_type(await executor.call(fetch, 1), bytes)
        assert_type(await executor.call(area, 3, 4), float)
        try:
            await executor.submit(job)
        except JobTimeoutError as error:
            print(error.error_code)


def collect_all(executor: JobExecutor, pages: list[int], **options: Unpack[JobOptions]) -> list[JobFuture[bytes]]:
    if not pages:
        raise DataCollectionException("no pages", error_code="DATA_ERROR", tool_name="pages")
    return [executor.options(**options).call(fetch, page) for page in pages]


def first_error(results: list[JobResult]) -> str | None:  # of any type
    return next((result.error_code for result in results if result.error is not None), None)
