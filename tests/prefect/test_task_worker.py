"""A task worker runs job tasks too: in Prefect's own engine, with each attempt run by a job."""

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
from executor_adapter.config import ExecutorSettings, JobTaskSettings, Settings
from executor_adapter.prefect import JobTask
from tests.prefect import served_tasks
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")

DistributedFuture = PrefectDistributedFuture[Any]
Value = Callable[[DistributedFuture], Any]


@pytest.fixture
def value_of(api: Api) -> Value:
    """Return the value of a task run, once the server has recorded its end."""

    def value(future: DistributedFuture) -> Any:
        wait_for(lambda: api.state_names(future.task_run_id)[-1:] in (["Completed"], ["Failed"]))
        return future.result(timeout=PATIENCE)

    return value


async def run_in_task_worker(task: JobTask[..., Any], future: DistributedFuture) -> None:
    """Run a scheduled task run as a task worker does that receives it."""
    async with get_client() as client:
        task_run = await client.read_task_run(future.task_run_id)
    await TaskWorker(task).execute_task_run(task_run)


def test_a_crash_in_a_task_worker_is_retried_in_another_process(api: Api, value_of: Value) -> None:
    """A job task that dies in a task worker is AwaitingRetry, and its second attempt completes."""
    future = served_tasks.die_once.delay("hello")
    asyncio.run(run_in_task_worker(served_tasks.die_once, future))
    pid, attempt, greeting = value_of(future)
    assert (attempt, greeting) == (2, "hello")
    assert pid != os.getpid()
    assert api.state_names(future.task_run_id) == [
        "Scheduled", "Pending", "Running", "AwaitingRetry", "Retrying", "Completed",
    ]  # fmt: skip


def test_an_async_job_task_is_retried_in_a_task_worker(value_of: Value) -> None:
    """An async job task that fails once gives the value of its second attempt."""
    future = served_tasks.fail_once.apply_async((1,))
    asyncio.run(run_in_task_worker(served_tasks.fail_once, future))
    assert value_of(future) == 2


def test_the_retries_of_the_settings_count_in_a_task_worker(value_of: Value) -> None:
    """A job task without options is retried as `executor.job_task` of the executor's settings says."""
    retried = JobTaskSettings(retry_attempts=1, retry_delay=0)
    future = served_tasks.fail_once_without_options.delay(1)
    with JobExecutor(config=Settings(executor=ExecutorSettings(job_task=retried))):
        asyncio.run(run_in_task_worker(served_tasks.fail_once_without_options, future))
    assert value_of(future) == 2


def test_max_runtime_holds_in_a_task_worker(api: Api) -> None:
    """A job task past its max_runtime ends as TimedOut in a task worker."""
    future = served_tasks.sleep_past_limit.delay()
    asyncio.run(run_in_task_worker(served_tasks.sleep_past_limit, future))
    wait_for(lambda: api.state_names(future.task_run_id) == ["Scheduled", "Pending", "Running", "TimedOut"])


def test_a_data_error_is_not_retried_in_a_task_worker(api: Api, scratch: Path) -> None:
    """An error that the policy does not retry ends the task run after one attempt."""
    future = served_tasks.read_broken.delay(str(scratch / "unicode"))
    asyncio.run(run_in_task_worker(served_tasks.read_broken, future))
    wait_for(lambda: api.state_names(future.task_run_id)[-1] == "Failed")
    assert (scratch / "unicode").read_text() == "x"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_retry_condition_holds_in_a_task_worker(scratch: Path, api: Api, is_async: bool) -> None:
    """A task's own retry condition, sync or async, stops the retries in a task worker."""

    def once(task: object, task_run: Any, state: object) -> bool:
        return bool(task_run.run_count < 2)

    async def once_async(task: object, task_run: Any, state: object) -> bool:
        return once(task, task_run, state)

    task = served_tasks.read_broken.with_options(retry_condition_fn=once_async if is_async else once)
    future = task.delay(str(scratch / "value"))
    asyncio.run(run_in_task_worker(task, future))
    wait_for(lambda: api.state_names(future.task_run_id)[-1] == "Failed")
    assert (scratch / "value").read_text() == "xx"


def test_a_job_ends_with_the_engine_that_drove_it(executor: JobExecutor) -> None:
    """A task worker that is stopped while a retry waits leaves no job that the executor would wait for."""
    future = served_tasks.retry_in_an_hour.delay()

    async def stop_in_between() -> None:
        working = asyncio.create_task(run_in_task_worker(served_tasks.retry_in_an_hour, future))
        while not executor.stats().jobs_retrying:
            await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.wait([working])

    asyncio.run(stop_in_between())
    wait_for(lambda: executor.stats().jobs_retrying == 0)


def test_a_task_worker_that_is_cancelled_again_and_again_ends_the_job(
    executor: JobExecutor, scratch: Path, api: Api
) -> None:
    """The task run is Crashed, and its job runs until the function has cleaned up."""
    started, cleaned_up = scratch / "started", scratch / "cleaned_up"
    future = served_tasks.clean_up.delay(str(started), str(cleaned_up))

    async def stop() -> None:
        working = asyncio.create_task(run_in_task_worker(served_tasks.clean_up, future))
        while not started.exists():
            await asyncio.sleep(0.01)
        while not working.done():
            working.cancel()
            await asyncio.sleep(0)

    asyncio.run(stop())
    wait_for(lambda: executor.stats().jobs_running == 0)
    assert cleaned_up.exists()
    wait_for(lambda: api.state_names(future.task_run_id)[-1] == "Crashed")


def test_prefect_task_runner_leaves_job_tasks_to_task_workers(value_of: Value) -> None:
    """Under PrefectTaskRunner a flow only schedules its job tasks, and a task worker runs them."""
    futures: list[DistributedFuture] = []

    @flow(task_runner=PrefectTaskRunner())
    def schedule() -> str:
        futures.append(served_tasks.fail_once.submit(1))
        futures.extend(served_tasks.fail_once.map([2, 3]))
        return "scheduled"

    assert schedule() == "scheduled"
    for future in futures:
        asyncio.run(run_in_task_worker(served_tasks.fail_once, future))
    assert [value_of(future) for future in futures] == [2, 3, 4]


@pytest.mark.nightly
def test_a_job_task_is_served_by_another_process(value_of: Value) -> None:
    """A process that calls `serve` runs and retries a job task that this process has scheduled."""
    future = served_tasks.die_once.delay("hello")
    serve = "from tests.prefect.served_tasks import die_once; die_once.serve()"
    worker = subprocess.Popen([sys.executable, "-c", serve], start_new_session=True)
    try:
        assert value_of(future)[1:] == (2, "hello")
    finally:
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait(timeout=PATIENCE)


def test_a_job_task_is_unchanged_within_its_own_function(value_of: Value) -> None:
    """Only Prefect's engine gets another function to call; the job's function sees its task as it was defined."""
    future = served_tasks.inspect_own_task.delay()
    asyncio.run(run_in_task_worker(served_tasks.inspect_own_task, future))
    assert value_of(future) == ("inspect_own_task", True)
    assert flow(lambda: served_tasks.inspect_own_task(), name="call")() == ("inspect_own_task", True)
