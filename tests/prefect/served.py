"""Job tasks that a task worker runs; in a module of its own, since one is served from another process."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path

from prefect import get_run_logger

from executor_adapter import current_job
from executor_adapter.prefect import job_task


@job_task(pool="process", retry_attempts=2, retry_delay=0.01)
def die_once(greeting: str) -> tuple[int, int, str]:
    """The process that it ends in, its attempt, and the greeting."""
    if current_job().attempt == 1:
        os._exit(3)
    get_run_logger().info("%s from attempt %s", greeting, current_job().attempt)
    return os.getpid(), current_job().attempt, greeting


@job_task(retry_attempts=2, retry_delay=0.01)
async def fail_once(x: int) -> int:
    if current_job().attempt == 1:
        raise ConnectionError("gone")
    return x + 1


@job_task(pool="process", max_runtime=0.5, retry_attempts=0)
def get_stuck() -> None:
    time.sleep(3600)


@job_task(retry_attempts=3, retry_delay=0)
def read_broken(calls: str) -> None:
    """Fail as no retry could mend."""
    with Path(calls).open("a") as file:
        file.write("x")
    raise ValueError("no") if calls.endswith("value") else UnicodeDecodeError("utf-8", b"\xff", 0, 1, "broken")


@job_task(retry_attempts=1, retry_delay=3600)
async def fail_for_an_hour() -> None:
    raise ConnectionError("gone")


@job_task(retry_attempts=0)
def name_itself() -> tuple[str, bool]:
    """Whether its task gives it the function that it is."""
    own = name_itself.fn
    return own.__name__, inspect.isfunction(own)
