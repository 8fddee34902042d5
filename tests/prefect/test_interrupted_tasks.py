"""Async job tasks in an async flow: their engines are in threads, and end with the asyncio tasks that await them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar
from uuid import UUID

import anyio
import pytest
from prefect import flow
from prefect.cache_policies import INPUTS
from prefect.context import TaskRunContext
from prefect.locking.memory import MemoryLockManager
from prefect.transactions import IsolationLevel, atransaction, get_transaction
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import arun_jobs, job_task
from executor_adapter.prefect.engine import run as engine_run
from executor_adapter.prefect.engine.run import result_of_job, run_in_thread
from tests.prefect.conftest import Api, own_id
from tests.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("prefect_api")


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
    assert [each["state_name"] for each in api.task_runs(ids[0])] == ["Cancelled"] * len(POOLS)


@pytest.mark.parametrize(
    "call",
    [
        lambda function: job_task(function, pool="coroutine")(),
        lambda function: arun_jobs([Job(function=function, pool="coroutine")]),
    ],
    ids=["job_task", "arun_jobs"],
)
def test_an_await_that_is_cancelled_again_and_again_lasts_until_the_function_has_ended(
    call: Callable[[Any], Coroutine[Any, Any, Any]],
) -> None:
    """The function has cleaned up when the call returns, so nothing of it goes on beside what the flow does next."""
    started, steps = threading.Event(), list[str]()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            for _ in range(100):
                await asyncio.sleep(0)
            steps.append("cleaned up")

    @flow
    async def run() -> None:
        working = asyncio.create_task(call(work))
        while not started.is_set():
            await asyncio.sleep(0.01)
        while not working.done():
            working.cancel()
            await asyncio.sleep(0)
        steps.append("returned")

    with JobExecutor(1):
        asyncio.run(run())
    assert steps == ["cleaned up", "returned"]


def test_an_await_that_is_cancelled_before_its_job_has_a_slot_starts_nothing(api: Api) -> None:
    """The task run goes from Pending to Cancelled, and says by what it was ended."""
    ids: list[UUID] = []

    @flow
    async def run() -> None:
        ids.append(own_id())
        with JobExecutor(1) as executor:
            first = asyncio.create_task(POOLS[0]())
            while not executor.stats().jobs_running:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(POOLS[1]())
            while not executor.stats().jobs_pending:
                await asyncio.sleep(0.01)
            for each in (second, first):
                each.cancel()
                await asyncio.wait([each])

    asyncio.run(run())
    runs = api.task_runs(ids[0])
    assert [api.state_names(each["id"]) for each in runs] == [
        ["Pending", "Running", "Cancelled"],
        ["Pending", "Cancelled"],
    ]
    assert {each["state"]["message"] for each in runs} == {"CANCELLED: ended by CancelledError"}


def test_the_engines_of_an_async_flow_share_a_client() -> None:
    """Calls and submitted tasks of an async flow use one client of the server; another flow run has its own."""

    @job_task(pool="thread")
    async def awaited() -> Any:
        return TaskRunContext.get().client

    @job_task(pool="thread")
    def submitted() -> Any:
        return TaskRunContext.get().client

    @flow
    async def run() -> list[Any]:
        return [*await asyncio.gather(awaited(), awaited()), *(submitted.submit().result() for _ in range(2))]

    with JobExecutor(2):
        clients = [asyncio.run(run()) for _ in range(2)]
    assert [len({id(client) for client in each}) for each in clients] == [1, 1]
    assert clients[0][0] is not clients[1][0]


@pytest.mark.parametrize("fails", [False, True])
def test_an_awaited_task_ends_with_the_async_transaction_around_it(fails: bool) -> None:
    """It commits when that ends, and a task that fails rolls back the others, also where its error is caught."""
    steps: list[str] = []

    @job_task(on_commit=[lambda _: steps.append("committed")], on_rollback=[lambda _: steps.append("rolled back")])
    async def first() -> None:
        transaction = get_transaction()
        assert transaction is not None, "each task has one"
        steps.append(transaction.get("of the flow"))

    @job_task
    async def second() -> None:
        if fails:
            raise ValueError("refused")

    @flow
    async def run() -> None:
        async with atransaction() as around:
            around.set("of the flow", "first")
            await first()
            with contextlib.suppress(ValueError):
                await second()
            steps.append("end")

    with JobExecutor(1):
        asyncio.run(run())
    assert steps == (["first", "rolled back", "end"] if fails else ["first", "end", "committed"])


def test_an_await_that_gives_up_on_its_job_says_so(caplog: pytest.LogCaptureFixture, mocker: MockerFixture) -> None:
    """A cancelled await whose job is not dead in time goes on, and the log says of which task."""
    go_on, job_run = threading.Event(), mocker.Mock(**{"task.name": "stubborn"})
    mocker.patch.object(engine_run, "INTERRUPT_TIMEOUT", 0.05)

    async def cancel_what_does_not_end() -> None:
        awaiting = asyncio.ensure_future(result_of_job(go_on.wait, job_run))
        await asyncio.sleep(0)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting

    try:
        asyncio.run(cancel_what_does_not_end())
    finally:
        go_on.set()
    assert [type(call.args[0]) for call in job_run.interrupt.mock_calls] == [asyncio.CancelledError]
    assert "task stubborn: its job is not dead 0 s after its caller was cancelled" in caplog.text


class HeldLock(MemoryLockManager):
    """Locks that somebody else holds until the test ends."""

    released: ClassVar = threading.Event()

    def acquire_lock(self, *_: Any, **__: Any) -> bool:
        return self.released.wait()


def test_an_engine_that_is_given_up_holds_up_no_executor(mocker: MockerFixture) -> None:
    """An executor ends although an engine whose caller was cancelled waits for the lock of a transaction."""
    mocker.patch.object(engine_run, "INTERRUPT_TIMEOUT", 0.05)
    policy = INPUTS.configure(isolation_level=IsolationLevel.SERIALIZABLE, lock_manager=HeldLock())

    @job_task(pool="coroutine", cache_policy=policy, persist_result=True)
    async def locked(name: str) -> None: ...

    @flow
    async def run() -> str:
        with JobExecutor(1) as executor:
            working = asyncio.create_task(locked("of another"))
            while not executor.stats().jobs_running:
                await asyncio.sleep(0.01)
            working.cancel()
            await asyncio.wait([working])
        return "goes on"

    assert asyncio.run(run()) == "goes on"
    HeldLock.released.set()


def test_the_interpreter_s_end_waits_for_no_engine() -> None:
    """A program ends although a thread for an engine waits for ever."""
    source = "import threading\n" + f"from {run_in_thread.__module__} import run_in_thread\n"
    waits = f"{source}run_in_thread(threading.Event().wait)\nprint('ends')"
    done = subprocess.run([sys.executable, "-c", waits], timeout=PATIENCE, capture_output=True, text=True, check=True)
    assert done.stdout == "ends\n"
