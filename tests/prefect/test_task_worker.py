"""A task worker runs job tasks too: by an engine of Prefect's, with each attempt one of a job."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.futures import PrefectDistributedFuture
from prefect.task_runners import PrefectTaskRunner
from prefect.task_worker import TaskWorker

from executor_adapter import JobExecutor
from executor_adapter.prefect import JobTask
from tests.prefect import served
from tests.prefect.conftest import Api, Wait

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")

Deferred = PrefectDistributedFuture[Any]
Value = Callable[[Deferred], Any]


@pytest.fixture
def value_of(api: Api, wait_for: Wait) -> Value:
    """The value of a task run, once the server knows that it is over."""

    def value(future: Deferred) -> Any:
        wait_for(lambda: api.state_names(future.task_run_id)[-1:] in (["Completed"], ["Failed"]), 60)
        return future.result(timeout=30)

    return value


async def work_off(task: JobTask[..., Any], future: Deferred) -> None:
    """Run what was scheduled as a task worker does that receives it."""
    async with get_client() as client:
        task_run = await client.read_task_run(future.task_run_id)
    await TaskWorker(task).execute_task_run(task_run)


def test_a_crash_in_a_task_worker_is_retried_in_another_process(api: Api, value_of: Value) -> None:
    future = served.die_once.delay("hello")
    asyncio.run(work_off(served.die_once, future))
    pid, attempt, greeting = value_of(future)
    assert (attempt, greeting) == (2, "hello")
    assert pid != os.getpid()
    assert api.state_names(future.task_run_id) == [
        "Scheduled", "Pending", "Running", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


def test_an_async_job_task_is_retried_in_a_task_worker(value_of: Value) -> None:
    future = served.fail_once.apply_async((1,))
    asyncio.run(work_off(served.fail_once, future))
    assert value_of(future) == 2


def test_a_limit_holds_in_a_task_worker(api: Api, wait_for: Wait) -> None:
    future = served.get_stuck.delay()
    asyncio.run(work_off(served.get_stuck, future))
    wait_for(lambda: api.state_names(future.task_run_id) == ["Scheduled", "Pending", "Running", "TimedOut"])


def test_what_no_retry_mends_is_not_retried_in_a_task_worker(api: Api, wait_for: Wait, scratch: Path) -> None:
    future = served.read_broken.delay(str(scratch / "unicode"))
    asyncio.run(work_off(served.read_broken, future))
    wait_for(lambda: api.state_names(future.task_run_id)[-1] == "Failed")
    assert (scratch / "unicode").read_text() == "x"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_retry_condition_holds_in_a_task_worker(scratch: Path, api: Api, wait_for: Wait, is_async: bool) -> None:
    def once(task: object, task_run: Any, state: object) -> bool:
        return bool(task_run.run_count < 2)

    async def once_async(task: object, task_run: Any, state: object) -> bool:
        return once(task, task_run, state)

    task = served.read_broken.with_options(retry_condition_fn=once_async if is_async else once)
    future = task.delay(str(scratch / "value"))
    asyncio.run(work_off(task, future))
    wait_for(lambda: api.state_names(future.task_run_id)[-1] == "Failed")
    assert (scratch / "value").read_text() == "xx"


def test_a_job_ends_with_the_engine_that_drove_it(executor: JobExecutor, wait_for: Wait) -> None:
    """A worker that is stopped while a retry waits leaves no job that the executor would wait for."""
    future = served.fail_for_an_hour.delay()

    async def stop_in_between() -> None:
        working = asyncio.create_task(work_off(served.fail_for_an_hour, future))
        while not executor.stats().jobs_retrying:
            await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.wait([working])

    asyncio.run(stop_in_between())
    wait_for(lambda: executor.stats().jobs_retrying == 0)


def test_a_flow_may_leave_its_job_tasks_to_task_workers(value_of: Value) -> None:
    futures: list[Deferred] = []

    @flow(task_runner=PrefectTaskRunner())
    def schedule() -> str:
        futures.append(served.fail_once.submit(1))
        futures.extend(served.fail_once.map([2, 3]))
        return "scheduled"

    assert schedule() == "scheduled"
    for future in futures:
        asyncio.run(work_off(served.fail_once, future))
    assert [value_of(future) for future in futures] == [2, 3, 4]


def test_a_job_task_is_served_from_a_process_of_its_own(value_of: Value) -> None:
    future = served.die_once.delay("hello")
    serve = "from tests.prefect.served import die_once; die_once.serve()"
    worker = subprocess.Popen([sys.executable, "-c", serve], start_new_session=True)
    try:
        assert value_of(future)[1:] == (2, "hello")
    finally:
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait(timeout=30)


def test_within_its_own_function_a_job_task_is_what_it_was(value_of: Value) -> None:
    """Only an engine of Prefect's is given another function to call."""
    future = served.name_itself.delay()
    asyncio.run(work_off(served.name_itself, future))
    assert value_of(future) == ("name_itself", True)
    assert flow(lambda: served.name_itself(), name="call")() == ("name_itself", True)
