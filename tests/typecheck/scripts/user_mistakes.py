"""Mistakes that a type checker must mark: each line that ends in `# red`, and no other."""

from __future__ import annotations

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.prefect import JobTaskRunner, job_options, job_task


def area(width: float, height: float) -> float:
    return width * height


async def fetch(page: int) -> bytes:
    return bytes(page)


Job(area)  # red
Job(args=(1, 2))  # red
Job(function=3)  # red
Job(function=area, args=("a"))  # red
Job(function=area, pool="proces")  # red
Job(function=area, max_run_time=60)  # red
Job(function=area, max_runtime="60")  # red
Job(function=area, retry=3)  # red
Job(function=area).status = None  # red
RetryPolicy(attempts=3)  # red

executor = JobExecutor(workers=3)  # red
executor = JobExecutor("3")  # red
executor.submit(area, 3, 4)  # red
executor.call(area)  # red
executor.call(area, "3", 4)  # red
executor.call(area, 3, depth=4)  # red
executor.call(fetch, page="1")  # red
executor.options(pool="proces")  # red
executor.options(pool="process").call(area, "3", 4)  # red
executor.map(area, 3, 4)  # red
executor.map(area, [3], [4], pool="proces")  # red
executor.map(area, [3], [4], retires=0)  # red
executor.as_executor(pool="proces")  # red
executor.as_executor().submit(area, "3", 4)  # red
text: str = executor.call(area, 3, 4).result()  # red
amount: int = next(executor.map(area, [3], [4])).value  # red


async def main() -> None:
    page: str = await executor.call(fetch, 1)  # red
    print(page)


@job_task(pool="process")
def collect(tool: str) -> int:
    return len(tool)


@job_task(pool="proces")  # red
def misspelt(tool: str) -> int:
    return len(tool)


@job_task(max_runtime="1h", retires=3)  # red
def twice_wrong(tool: str) -> int:
    return len(tool)


@job_options(poll="process")  # red
def plain(tool: str) -> int:
    return len(tool)


job_task("process")  # red
collect(3)  # red
collect.with_options(pool="proces")  # red
total: str = collect.submit("flights").result()  # red
JobTaskRunner(pool="proces")  # red
JobTaskRunner(retry_attempts=3)  # red
