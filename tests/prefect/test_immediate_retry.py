"""A retry without a delay skips AwaitingRetry, as in Prefect, unless it has to wait for a slot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task

from executor_adapter import JobExecutor, current_job
from executor_adapter.prefect import JobTaskRunner, job_task
from tests.prefect.conftest import Api
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_api")

WITHOUT_AWAITING = ["Pending", "Running", "Retrying", "Failed"]


def refuse() -> None:
    """Fail with an error that is retried."""
    raise ConnectionError("refused")


async def refuse_async() -> None:
    """Fail with an error that is retried, in a coroutine."""
    raise ConnectionError("refused")


@pytest.mark.parametrize("function", [refuse, refuse_async])
@pytest.mark.parametrize("kind", ["job task", "plain task"])
def test_a_retry_without_a_delay_is_retrying_and_gives_the_reason(function: Any, kind: str, api: Api) -> None:
    """The task run goes from Running to Retrying, whose message is the error of the first attempt."""
    made = task(function, retries=1) if kind == "plain task" else job_task(function, retry_attempts=1, retry_delay=0)

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> None:
        futures.append(made.submit())
        futures[0].wait()

    futures: list[Any] = []
    run()
    task_run_id = futures[0].task_run_id
    assert api.state_names(task_run_id) == WITHOUT_AWAITING
    assert api.states(task_run_id)[2]["message"] == "attempt 1 of 2: NETWORK_ERROR: ConnectionError: refused"
    assert api.task_run(task_run_id)["run_count"] == 2
    wait_for(lambda: any("Retries are exhausted" in message for message in api.messages(task_run_id)))


def test_a_retry_without_a_delay_is_retrying_in_an_event_loop(api: Api) -> None:
    """A task that is awaited skips AwaitingRetry as well."""
    made = job_task(refuse_async, retry_attempts=1, retry_delay=0)

    @flow
    async def run() -> Any:
        state = await made(return_state=True)
        states.append(state)

    states: list[Any] = []
    asyncio.run(run())
    assert api.state_names(states[0].state_details.task_run_id) == WITHOUT_AWAITING


def fail_once_when_queued(queued: str) -> int:
    """Fail in the first attempt, as soon as the file `queued` exists."""
    while current_job().attempt == 1:
        if Path(queued).exists():
            raise ConnectionError("refused")
        time.sleep(0.01)
    return current_job().attempt


def hold_slot(released: str) -> None:
    """Keep the slot until the file `released` exists."""
    while not Path(released).exists():
        time.sleep(0.01)


def test_a_retry_without_a_slot_is_awaiting_retry(api: Api, scratch: Path) -> None:
    """A retry whose slot another job has taken is AwaitingRetry until the slot is free."""
    fail_once = job_task(fail_once_when_queued, retry_attempts=1, retry_delay=0)
    hold = job_task(hold_slot, retry_attempts=0)
    queued, released = scratch / "queued", scratch / "released"

    @flow
    def run() -> Any:
        with JobExecutor(max_workers=1) as executor:
            futures.append(fail_once.submit(str(queued)))
            wait_for(lambda: executor.stats().jobs_running == 1)
            hold.submit(str(released))
            wait_for(lambda: executor.stats().jobs_pending == 1)
            queued.touch()
            wait_for(lambda: futures[0].state.name == "AwaitingRetry")
            released.touch()
            return futures[0].result()

    futures: list[Any] = []
    assert run() == 2
    assert api.state_names(futures[0].task_run_id) == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]
