"""Job tasks for a task worker; they have a module of their own, because another process serves one of them."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from pathlib import Path

from prefect import get_run_logger

from executor_adapter import current_job
from executor_adapter.prefect import job_task


@job_task(pool="process", retry_attempts=2, retry_delay=0.01)
def die_once(greeting: str) -> tuple[int, int, str]:
    """Die in the first attempt; return the process id, the attempt, and the greeting."""
    if current_job().attempt == 1:
        os._exit(3)
    get_run_logger().info("%s from attempt %s", greeting, current_job().attempt)
    return os.getpid(), current_job().attempt, greeting


@job_task(retry_attempts=2, retry_delay=0.01)
async def fail_once(x: int) -> int:
    """Fail in the first attempt."""
    if current_job().attempt == 1:
        raise ConnectionError("gone")
    return x + 1


@job_task
def fail_once_without_options(x: int) -> int:
    """Fail in the first attempt; whether there is a second one, the settings say."""
    if current_job().attempt == 1:
        raise ConnectionError("gone")
    return x + 1


@job_task(pool="process", max_runtime=0.5, retry_attempts=0)
def sleep_past_limit() -> None:
    """Sleep longer than max_runtime."""
    time.sleep(3600)


@job_task(retry_attempts=3, retry_delay=0)
def read_broken(calls: str) -> None:
    """Note the call, and fail with an error that is not retried, or with a ValueError."""
    with Path(calls).open("a") as file:
        file.write("x")
    raise ValueError("no") if calls.endswith("value") else UnicodeDecodeError("utf-8", b"\xff", 0, 1, "broken")


@job_task(retry_attempts=1, retry_delay=3600)
async def retry_in_an_hour() -> None:
    """Fail, with a retry that is due in an hour."""
    raise ConnectionError("gone")


@job_task(retry_attempts=0)
def inspect_own_task() -> tuple[str, bool]:
    """Return the name of the task's function, and whether it is a plain function."""
    own = inspect_own_task.fn
    return own.__name__, inspect.isfunction(own)


@job_task(retry_attempts=0)
async def clean_up(started: str, cleaned_up: str) -> None:
    """Run until cancelled, and take a moment to clean up: half a second is the most that a coroutine has for it."""
    Path(started).touch()
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.1)
        Path(cleaned_up).touch()
