"""An async job task whose asyncio task is cancelled: its task run ends on the server, however often it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import pytest
from prefect import flow

from executor_adapter import JobExecutor
from executor_adapter.prefect import job_task, wait_until_recorded
from tests.prefect.conftest import Api, own_id


async def rest() -> None:
    await asyncio.sleep(600)


POOLS = [job_task(rest, pool=pool) for pool in ("coroutine", "thread", "process")]


async def until_running(executor: JobExecutor) -> None:
    while executor.stats().jobs_running < len(POOLS):
        await asyncio.sleep(0.01)


async def cancelled_by_hand(executor: JobExecutor) -> None:
    tasks = [asyncio.create_task(rest()) for rest in POOLS]
    await until_running(executor)
    while not all(task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)


async def cancelled_by_the_scope_of_a_gather(executor: JobExecutor) -> None:
    """A scope whose deadline has passed, as that of a flow's `timeout_seconds`, cancels at each turn of the loop."""
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            await until_running(executor)
            scope.cancel()

        await asyncio.gather(*(rest() for rest in POOLS), cancel())


@pytest.mark.parametrize(
    "cancel", [cancelled_by_hand, pytest.param(cancelled_by_the_scope_of_a_gather, marks=pytest.mark.nightly)]
)
def test_a_task_run_that_is_cancelled_again_and_again_ends(
    api: Api, cancel: Callable[[JobExecutor], Awaitable[None]]
) -> None:
    """Async job tasks of each pool that are cancelled at each turn of the loop are Cancelled when their flow ends."""
    ids: list[UUID] = []

    @flow
    async def run() -> str:
        ids.append(own_id())
        with JobExecutor(len(POOLS)) as executor:
            await cancel(executor)
        return "goes on"

    assert asyncio.run(run()) == "goes on"
    assert wait_until_recorded(ids[0]).complete
    assert [each["state_name"] for each in api.task_runs(ids[0])] == ["Cancelled"] * len(POOLS)
