"""What only real time can show: how soon after its limit each kind of work is over, with nothing else to do.

`tests/run.py` runs these tests last, with nothing beside them. All other tests let what they wait for take its time.
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, RetryRule
from executor_adapter.config import Settings
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError, SoftTimeoutError
from tests.servers import ROOT
from tests.waiting import PATIENCE, wait_for

SOON = 5.0
"""Seconds that may pass between a limit and the end: a hundred times what they take on a machine without other work."""


def nothing() -> None:
    """Let a worker import this module, which is a part of the first call's time."""


def hold_gil(started: str) -> None:
    Path(started).touch()
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)


def sleep(started: str) -> None:
    Path(started).touch()
    time.sleep(3600)


def ignore_sigterm(started: str) -> None:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(started)


async def sleep_on_loop(started: str) -> None:
    Path(started).touch()
    await asyncio.sleep(3600)


def clean_up(started: str) -> str:
    try:
        sleep(started)
    except SoftTimeoutError:
        return "cleaned up"
    return "slept"


def note_at_exit(place: str) -> None:
    """Write a file two seconds after the worker was asked to exit, as something that is sent to a slow server."""
    atexit.register(lambda: time.sleep(2) or Path(place).touch())


def fail_at_first(times: str) -> None:
    with Path(times).open("a") as file:
        print(time.time(), file=file)
    if len(Path(times).read_text().split()) == 1:
        raise ConnectionError("once")


@pytest.fixture
def executor() -> Any:
    with JobExecutor(4, config=Settings()) as executor:
        executor.run(Job(function=nothing, pool="process"))
        yield executor
        executor.shutdown(timeout=0)


@pytest.mark.parametrize(
    ("pool", "function"),
    [("process", sleep), ("process", hold_gil), ("thread", sleep), ("coroutine", sleep_on_loop)],
    ids=["process", "process that holds the GIL", "thread", "coroutine"],
)
def test_a_job_is_over_soon_after_its_limit(
    executor: JobExecutor, tmp_path: Path, pool: str, function: Callable[..., Any]
) -> None:
    """A job past its limit is over soon, whatever holds it."""
    job = Job(function=function, args=(str(tmp_path / "started"),), pool=pool, max_runtime=1.0, retry_attempts=0)
    with pytest.raises(JobTimeoutError):
        executor.run(job)
    assert 0.9 < job.attempts[0].run_seconds < 1.0 + SOON  # The host counts from when it has started the function.


def test_jobs_that_ignore_sigterm_are_killed_side_by_side(executor: JobExecutor, tmp_path: Path) -> None:
    """Several jobs that ignore SIGTERM have one grace period together."""
    started = [tmp_path / str(number) for number in range(4)]
    futures = [executor.submit(Job(function=ignore_sigterm, args=(str(path),), pool="process")) for path in started]
    wait_for(lambda: all(path.exists() for path in started))  # From then on they ignore it.
    began = time.monotonic()
    for future in futures:
        assert executor.cancel(future.job.job_id)
    for future in futures:
        with pytest.raises(JobCancelledError):
            future.result(timeout=PATIENCE)
    assert time.monotonic() - began < 5.0 + SOON  # One grace period is 5 s; four would be 20.


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_a_soft_timeout_is_raised_soon(executor: JobExecutor, tmp_path: Path, pool: str) -> None:
    """The function gets its soft timeout when it is due, however long it would sleep."""
    started = str(tmp_path / "started")
    if pool == "thread":  # A thread cannot be woken in a call of C.
        function: Callable[..., Any] = wait_in_python
    else:
        function = clean_up
    job = Job(function=function, args=(started,), pool=pool, soft_timeout=1.0, retry_attempts=0)
    assert executor.run(job) == "cleaned up"
    assert 0.9 < job.attempts[0].run_seconds < 1.0 + SOON  # The host counts from when it has started the function.


def wait_in_python(started: str) -> str:
    Path(started).touch()
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeoutError:
        return "cleaned up"


@pytest.mark.parametrize("pool", ["process", "coroutine"])
def test_a_cancelled_job_is_over_soon(executor: JobExecutor, tmp_path: Path, pool: str) -> None:
    """A running job is over soon after it was cancelled, and its worker is free for the next."""
    started = tmp_path / "started"
    function = sleep_on_loop if pool == "coroutine" else sleep
    future = executor.submit(Job(function=function, args=(str(started),), pool=pool))
    wait_for(started.exists)
    began = time.monotonic()
    assert executor.cancel(future.job.job_id)
    with pytest.raises(JobCancelledError):
        future.result(timeout=PATIENCE)
    assert executor.run(Job(function=os.getpid, pool="process"))
    assert time.monotonic() - began < SOON


def test_a_retry_starts_when_it_is_due(executor: JobExecutor, tmp_path: Path) -> None:
    """A retry starts after its delay, and not much later."""
    times = tmp_path / "times"
    policy = RetryPolicy(retry_attempts=1, retry_delay=1.0, jitter=0.0, rules=(RetryRule(codes=("NETWORK_ERROR",)),))
    executor.run(Job(function=fail_at_first, args=(str(times),), pool="process", retry=policy))
    first, second = map(float, times.read_text().split())
    assert 1.0 <= second - first < 1.0 + SOON


HOST = """
import sys, time
from executor_adapter import Job, JobExecutor
from tests.test_real_time import sleep
with JobExecutor(1, store=sys.argv[1]) as executor:
    executor.submit(Job(function=sleep, args=(sys.argv[2],), job_id="left", pool="process"))
    executor.flush()
    time.sleep(3600)
"""


def test_the_job_of_a_killed_host_is_found_soon(tmp_path: Path) -> None:
    """A job whose host was killed is taken over soon by the next program, long before its lease ends."""
    started, url = tmp_path / "started", f"sqlite:///{tmp_path / 'jobs.db'}"
    with subprocess.Popen([sys.executable, "-c", HOST, url, str(started)], cwd=ROOT) as host:
        try:
            wait_for(started.exists)
        finally:
            host.kill()
    started.unlink()
    began = time.monotonic()
    with JobExecutor(1, config=Settings(), store=url) as executor:
        executor.recover()
        wait_for(started.exists)
        assert time.monotonic() - began < 2 * SOON  # The lease lasts for a minute.
        executor.shutdown(timeout=0)


def test_a_worker_that_exits_has_seconds_for_its_exit_functions(tmp_path: Path) -> None:
    """What a function leaves to its worker's exit is done, also where that takes a while."""
    with JobExecutor(1, config=Settings()) as executor:
        executor.run(Job(function=note_at_exit, args=(str(tmp_path / "done"),), pool="process"))
    assert (tmp_path / "done").exists()
