"""The states of a job task's task run, as a real server records them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.futures import PrefectFuture

from executor_adapter import JobExecutor
from executor_adapter.exceptions import (
    DataCollectionException,
    JobTimeoutError,
    MemoryLimitError,
    WorkerCrashedError,
)
from executor_adapter.prefect import job_task
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE

POOLS = ["thread", pytest.param("coroutine", marks=pytest.mark.nightly), "process"]


def succeed_at(attempt: int, scratch: Path) -> int:
    """Fail until the given attempt; attempts are counted in a file, since each may have a process of its own."""
    count = scratch / "attempts"
    number = len(count.read_text()) + 1 if count.exists() else 1
    count.write_text("x" * number)
    if number < attempt:
        raise ConnectionError("refused")
    return number


async def succeed_at_async(attempt: int, scratch: Path) -> int:
    return succeed_at(attempt, scratch)


def fail_with_data_error() -> None:
    raise DataCollectionException("row 7 is broken", error_code="DATA_ERROR")


def sleep_long(scratch: Path) -> None:
    (scratch / "pid").write_text(str(os.getpid()))
    time.sleep(30)


async def sleep_long_async(scratch: Path) -> None:
    import asyncio

    await asyncio.sleep(30)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def answer() -> int:
    return 42


def run_in_flow(submit: Any) -> list[PrefectFuture[Any]]:
    """Run `submit()` in a flow, and return its futures once they are done."""

    @flow
    def run() -> None:
        futures.extend(submit())
        for future in futures:
            future.wait()

    futures: list[PrefectFuture[Any]] = []
    run()
    return futures


def only_id(futures: list[PrefectFuture[Any]]) -> UUID:
    (future,) = futures
    return future.task_run_id


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_that_fails_twice_and_then_succeeds_shows_every_state(
    api: Api, executor: JobExecutor, scratch: Path, pool: str
) -> None:
    """Each failed attempt is shown with its error, the time of the next one and the number of runs."""
    function: Any = succeed_at_async if pool == "coroutine" else succeed_at
    task = job_task(function, pool=pool, retry_attempts=3, retry_delay=0.1)
    futures = run_in_flow(lambda: [task.submit(3, scratch)])
    task_run = api.task_run(only_id(futures))
    states = api.states(only_id(futures))
    assert [state["name"] for state in states] == [
        "Pending", "Running", "AwaitingRetry", "Retrying", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip
    assert task_run["run_count"] == 3
    assert task_run["state_name"] == "Completed"
    assert task_run["empirical_policy"]["retries"] == 3
    assert states[2]["message"] == "attempt 1 of 4: NETWORK_ERROR: ConnectionError: refused"
    assert states[4]["message"] == "attempt 2 of 4: NETWORK_ERROR: ConnectionError: refused"
    assert states[4]["state_details"]["scheduled_time"] > states[4]["timestamp"]
    assert futures[0].result() == 3


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_past_its_limit_is_timed_out(api: Api, executor: JobExecutor, scratch: Path, pool: str) -> None:
    """A job past its limit is TimedOut soon, in each pool; a process is dead then."""
    function: Any = sleep_long_async if pool == "coroutine" else sleep_long
    task = job_task(function, pool=pool, max_runtime=1, retry_attempts=0)
    warm_up = job_task(
        answer, pool="process"
    )  # The first worker takes a second to start, which does not count as run time.

    def submit() -> list[PrefectFuture[Any]]:
        if pool == "process":
            warm_up()
        return [task.submit(scratch)]

    futures = run_in_flow(submit)
    states = {state["name"]: state for state in api.states(only_id(futures))}
    assert list(states) == ["Pending", "Running", "TimedOut"]
    ran = _seconds_between(states["Running"], states["TimedOut"])
    assert 1.0 <= ran <= 10.0
    assert states["TimedOut"]["type"] == "FAILED"
    assert states["TimedOut"]["message"].startswith("TIMEOUT_ERROR: ran longer than max_runtime=1")
    with pytest.raises(JobTimeoutError):
        futures[0].result()
    if pool == "process":
        with pytest.raises(ProcessLookupError):
            os.kill(int((scratch / "pid").read_text()), 0)


def _seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    from datetime import datetime

    start, end = (datetime.fromisoformat(state["timestamp"]) for state in (earlier, later))
    return (end - start).total_seconds()


def test_a_killed_worker_ends_crashed_and_its_neighbour_completed(api: Api, executor: JobExecutor) -> None:
    """A killed worker's task run is Crashed, and its neighbour completes."""
    crash = job_task(die, pool="process", retry_attempts=0)
    neighbour = job_task(answer, pool="process", retry_attempts=0)
    futures = run_in_flow(lambda: [crash.submit(), neighbour.submit()])
    crashed = api.task_run(futures[0].task_run_id)
    assert (crashed["state_type"], crashed["state_name"]) == ("CRASHED", "Crashed")
    assert api.task_run(futures[1].task_run_id)["state_name"] == "Completed"
    with pytest.raises(WorkerCrashedError):
        futures[0].result()
    assert futures[1].result() == 42


def eat_memory() -> int:
    blocks = [bytearray(16 << 20) for _ in range(64)]
    time.sleep(30)
    return len(blocks)


def test_a_job_past_its_memory_limit_ends_out_of_memory(api: Api, executor: JobExecutor) -> None:
    """A job past its memory limit ends OutOfMemory, a state of type CRASHED."""
    hungry = job_task(eat_memory, pool="process", memory_limit="400MiB", retry_attempts=0)
    futures = run_in_flow(lambda: [hungry.submit()])
    task_run = api.task_run(only_id(futures))
    assert (task_run["state_type"], task_run["state_name"]) == ("CRASHED", "OutOfMemory")
    with pytest.raises(MemoryLimitError):
        futures[0].result()


def test_a_data_error_is_not_retried(api: Api, executor: JobExecutor) -> None:
    """A task run with a data error ends Failed after one attempt."""
    task = job_task(fail_with_data_error, retry_attempts=3, retry_delay=0)
    futures = run_in_flow(lambda: [task.submit()])
    states = api.states(only_id(futures))
    assert [state["name"] for state in states] == ["Pending", "Running", "Failed"]
    assert states[-1]["message"] == "DATA_ERROR: row 7 is broken"


def test_the_slot_is_free_while_a_retry_waits(api: Api, scratch: Path) -> None:
    """Another job completes in the slot of a job that waits for its retry."""
    flaky = job_task(succeed_at, pool="thread", retry_attempts=1, retry_delay=1.0)
    quick = job_task(answer, pool="thread")
    with JobExecutor(max_workers=1):
        futures = run_in_flow(lambda: [flaky.submit(2, scratch), quick.submit()])
    waited = {state["name"]: state for state in api.states(futures[0].task_run_id)}
    ran = {state["name"]: state for state in api.states(futures[1].task_run_id)}
    assert ran["Completed"]["timestamp"] < waited["Retrying"]["timestamp"]


def test_a_job_past_its_queue_timeout_is_timed_out_without_running(api: Api) -> None:
    """A job that waits for a slot past its queue_timeout goes from Pending to TimedOut."""
    begun, ended = threading.Event(), threading.Event()

    @job_task(pool="thread")
    def hold() -> None:
        begun.set()
        ended.wait(PATIENCE)

    late = job_task(answer, queue_timeout=0.2, pool="thread", retry_attempts=3)

    def submit() -> list[PrefectFuture[Any]]:
        holding = hold.submit()
        assert begun.wait(PATIENCE)
        futures = [late.submit()]
        futures[0].wait()
        ended.set()
        holding.wait()
        return futures

    with JobExecutor(max_workers=1):
        futures = run_in_flow(submit)
    states = api.states(only_id(futures))
    assert [state["name"] for state in states] == ["Pending", "TimedOut"]
    assert states[-1]["message"].startswith("QUEUE_TIMEOUT: ")


@pytest.mark.nightly
def test_no_task_run_of_a_finished_flow_run_is_in_a_state_that_is_not_final(
    api: Api, executor: JobExecutor, scratch: Path
) -> None:
    """Every task run of a finished flow run is in a final state, whether it completed, failed or crashed."""
    tasks = [
        job_task(fail_with_data_error, retry_attempts=0),
        job_task(answer),
        job_task(die, pool="process", retry_attempts=1, retry_delay=0),
    ]
    futures = run_in_flow(lambda: [task.submit() for task in tasks for _ in range(5)])
    flow_run_id = api.task_run(futures[0].task_run_id)["flow_run_id"]
    runs = api.task_runs(flow_run_id)
    assert len(runs) == 15
    assert sorted(run["state_name"] for run in runs) == ["Completed"] * 5 + ["Crashed"] * 5 + ["Failed"] * 5
