"""A retry without a delay is shown as Prefect shows it, unless it has to wait for a slot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task

from executor_adapter import JobExecutor, current_job
from executor_adapter.prefect import JobTaskRunner, job_task, wait_until_recorded
from tests.prefect.conftest import Api, Wait

pytestmark = pytest.mark.usefixtures("prefect_api")

AT_ONCE = ["Pending", "Running", "Retrying", "Failed"]


def refuse() -> None:
    raise ConnectionError("refused")


async def refuse_async() -> None:
    raise ConnectionError("refused")


@pytest.mark.parametrize("function", [refuse, refuse_async])
@pytest.mark.parametrize("kind", ["job task", "plain task"])
def test_it_is_retrying_at_once_and_says_why(function: Any, kind: str, api: Api, wait_for: Wait) -> None:
    made = task(function, retries=1) if kind == "plain task" else job_task(function, retry_attempts=1, retry_delay=0)

    @flow(task_runner=JobTaskRunner(max_workers=1))
    def run() -> None:
        futures.append(made.submit())
        futures[0].wait()

    futures: list[Any] = []
    run()
    task_run_id = futures[0].task_run_id
    assert api.state_names(task_run_id) == AT_ONCE
    assert api.states(task_run_id)[2]["message"] == "attempt 1 of 2: NETWORK_ERROR: refused"
    assert api.task_run(task_run_id)["run_count"] == 2
    wait_for(lambda: any("Retries are exhausted" in message for message in api.messages(task_run_id)))


def test_so_it_is_where_an_event_loop_drives_it(api: Api) -> None:
    made = job_task(refuse_async, retry_attempts=1, retry_delay=0)

    @flow
    async def run() -> Any:
        state = await made(return_state=True)
        wait_until_recorded()
        states.append(state)

    states: list[Any] = []
    asyncio.run(run())
    assert api.state_names(states[0].state_details.task_run_id) == AT_ONCE


def fail_once_others_wait(queued: str) -> int:
    while current_job().attempt == 1:
        if Path(queued).exists():
            raise ConnectionError("refused")
        time.sleep(0.01)
    return current_job().attempt


def hold_slot(released: str) -> None:
    while not Path(released).exists():
        time.sleep(0.01)


def test_it_awaits_its_retry_while_it_has_no_slot(api: Api, scratch: Path, wait_for: Wait) -> None:
    """A job that was queued before it has the only slot: Running or Retrying would not be true."""
    fail_once = job_task(fail_once_others_wait, retry_attempts=1, retry_delay=0)
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
