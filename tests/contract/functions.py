"""Functions of the contract's jobs, importable in a worker; `for_pool` makes coroutine functions of them."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executor_adapter import current_job
from executor_adapter.exceptions import DataCollectionException, SoftTimeoutError


def add(left: int, right: int = 1) -> int:
    return left + right


def fail_with_code(code: str) -> None:
    raise DataCollectionException(f"broken: {code}", error_code=code)


def fail_with_value_error(text: str) -> None:
    raise ValueError(text)


def count_call(path: str) -> int:
    """Return how many times it was called with this path, this call included."""
    with Path(path).open("a") as file:
        file.write("x")
    return Path(path).stat().st_size


def fail_until(path: str, succeed_at: int) -> int:
    calls = count_call(path)
    if calls < succeed_at:
        raise ConnectionError(f"call {calls}")
    return calls


def collect(count: int) -> dict[str, int]:
    return {"records_collected": count}


def raise_timeout_error() -> None:
    raise TimeoutError("the function's own")


def describe_job() -> dict[str, Any]:
    job = current_job()
    return {"job_id": job.job_id, "attempt": job.attempt, "remaining": job.remaining, "tool": job.tool_name}


def count_up_in_checkpoints(succeed_at: int) -> int:
    done = (current_job().checkpoint_value or 0) + 1
    current_job().checkpoint(done)
    current_job().progress(done, succeed_at, "counting")
    if done < succeed_at:
        raise ConnectionError(f"only {done}")
    return done


def append_line(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(line + "\n")


def report_then_sleep(times: int, interval: float, seconds: float) -> None:
    for done in range(1, times + 1):
        current_job().progress(done)
        time.sleep(interval)
    time.sleep(seconds)


async def report_then_sleep_on_loop(times: int, interval: float, seconds: float) -> None:
    for done in range(1, times + 1):
        current_job().progress(done)
        await asyncio.sleep(interval)
    await asyncio.sleep(seconds)


def spin(seconds: float) -> None:
    """Sleep in short steps, so that an exception raised in the thread is seen soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.01)


def clean_up_at_soft_timeout(path: str) -> str:
    try:
        spin(30.0)
    except SoftTimeoutError:
        Path(path).touch()
        return "cut short"
    return "never interrupted"


def fail_then_stay(path: str, seconds: float) -> int:
    calls = fail_until(path, 2)
    time.sleep(seconds)
    return calls


def wait_for_file(path: str) -> None:
    """Return when the file exists."""
    while not Path(path).exists():
        time.sleep(0.01)


def exit_at(path: str) -> None:
    """End the process when the file exists."""
    wait_for_file(path)
    os._exit(3)


def lose_connection_at(path: str) -> None:
    """Raise ConnectionError when the file exists."""
    wait_for_file(path)
    raise ConnectionError("on purpose")


def be_rate_limited_once(path: str, retry_after: float) -> int:
    calls = count_call(path)
    if calls == 1:
        raise DataCollectionException("slow down", error_code="RATE_LIMITED", retry_after=retry_after)
    return calls


_calls_seen = contextvars.ContextVar("_calls_seen", default=0)


def count_call_in_a_context_variable() -> int:
    """Return how many calls it saw before this one."""
    seen = _calls_seen.get()
    _calls_seen.set(seen + 1)
    return seen


async def wait_for_file_on_loop(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.01)


async def sleep_on_loop(seconds: float) -> None:
    await asyncio.sleep(seconds)


def as_coroutine_function(function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def for_pool(function: Callable[..., Any], pool: str) -> Callable[..., Any]:
    """Return the function in the form that the pool runs."""
    if pool != "coroutine":
        return function
    on_loop = {time.sleep: sleep_on_loop, wait_for_file: wait_for_file_on_loop}
    return on_loop.get(function) or as_coroutine_function(function)


def pid() -> int:
    """Return the process that it runs in."""
    return os.getpid()


def fail_in_process() -> None:
    """Raise an error that names the process."""
    raise LookupError(os.getpid())


def start_slowly(folder: str) -> None:
    """Let a worker start only once the file `go` exists."""
    (Path(folder) / "starting").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)


def times_of_a_sleep(seconds: float) -> tuple[float, float]:
    """Return the monotonic times at which a sleep began and ended."""
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def gpu_and_process(gate: str) -> tuple[str | None, int]:
    """Write this process's pid beside the file `gate` and wait for that; return CUDA_VISIBLE_DEVICES and the pid."""
    Path(gate).with_suffix(".pid").write_text(str(os.getpid()))
    wait_for_file(gate)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()
