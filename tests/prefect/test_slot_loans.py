"""Jobs that run other jobs and wait for them lend their slot, however they wait."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow
from prefect.futures import as_completed, wait

from executor_adapter import Job, JobExecutor
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.in_process.slot_loan import SlotLoan
from executor_adapter.prefect import arun_jobs, job_task, run_jobs
from tests.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("prefect_api")


@job_task(pool="thread", retry_attempts=0)
def double(x: int) -> int:
    """Return twice `x`."""
    return 2 * x


@job_task(retry_attempts=0)
async def double_async(x: int) -> int:
    """Return twice `x`, from a coroutine."""
    return 2 * x


def bulk_jobs() -> list[Job]:
    """Return three jobs for run_jobs."""
    return [Job(function=double.fn, args=(x,), pool="thread") for x in range(3)]


def call() -> Any:
    """Call another job task."""
    return double(1)


def call_nested() -> Any:
    """Call a job task that calls another one."""
    return job_task(call, pool="thread", max_runtime=PATIENCE)()


async def await_one() -> Any:
    """Await another job task."""
    return await double_async(1)


async def await_many() -> Any:
    """Await three job tasks at once."""
    return await asyncio.gather(*(double_async(x) for x in range(3)))


def take_as_completed() -> Any:
    """Take the results of three job tasks as they complete."""
    return sorted(future.result() for future in as_completed(double.map(range(3))))


def call_others_between() -> Any:
    """Call a job task for each result of three others."""
    return sorted(double(future.result()) for future in as_completed(double.map(range(3))))


def wait_with_a_timeout() -> Any:
    """Wait for three job tasks, with a timeout."""
    return len(wait(double.map(range(3)), timeout=PATIENCE).done)


def run_many() -> Any:
    """Run three jobs by run_jobs."""
    return [result.value for result in run_jobs(bulk_jobs())]


async def arun_many() -> Any:
    """Run three jobs by arun_jobs."""
    return [result.value for result in await arun_jobs(bulk_jobs())]


WAYS: dict[Callable[[], Any], Any] = {
    call: 2,
    call_nested: 2,
    await_one: 2,
    await_many: [0, 2, 4],
    take_as_completed: [0, 2, 4],
    call_others_between: [0, 4, 8],
    wait_with_a_timeout: 3,
    run_many: [0, 2, 4],
    arun_many: [0, 2, 4],
}


@pytest.mark.parametrize("parent", WAYS, ids=lambda parent: parent.__name__)
def test_a_job_that_waits_for_others_lends_them_the_only_slot(parent: Callable[[], Any]) -> None:
    """A job that waits for others in any way does not block them from the only slot."""
    waiting = job_task(parent, retry_attempts=0, max_runtime=PATIENCE)

    @flow
    def run() -> Any:
        with JobExecutor(max_workers=1):
            return waiting.submit().result()

    assert run() == WAYS[parent]


def test_a_job_that_has_waited_has_its_slot_again() -> None:
    """After its wait a job holds its slot again: another job starts only when it has ended."""
    begun, parent_is_over = threading.Event(), threading.Event()
    too_early: list[bool] = []

    @job_task(pool="thread", retry_attempts=0)
    def late() -> bool:
        begun.set()
        return parent_is_over.is_set()

    @job_task(pool="thread", retry_attempts=0)
    def parent() -> Any:
        call_others_between()
        future = late.submit()
        too_early.append(begun.wait(0.3))
        parent_is_over.set()
        return future

    @flow
    def run() -> Any:
        with JobExecutor(max_workers=1):
            return parent.submit().result().result()

    assert run() is True
    assert too_early == [False]


def test_a_wait_that_ends_before_its_beginning_is_seen_lends_nothing() -> None:
    """A slot is never lent for a wait that has ended meanwhile, in whatever order the supervisor learns of both."""
    lender = Lender()
    loan = SlotLoan(lender, Assignment(Job(function=print), 1, None))  # type: ignore[arg-type]
    loan.begin()
    loan.end(on_supervisor=True)
    lender.run_calls()
    assert not lender.is_lent
    loan.begin()
    lender.run_calls()
    loan.end()
    loan.begin()
    lender.queued.reverse()
    lender.run_calls()
    assert lender.is_lent
    loan.end()
    lender.run_calls()
    assert not lender.is_lent


class Lender:
    """Does what a loan asks of a supervisor once `run_calls` is called."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], None]] = []
        self.is_lent = False

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.queued.append(functools.partial(callback, *args))

    def run_calls(self) -> None:
        while self.queued:
            self.queued.pop(0)()

    def lend_slot(self, _: Assignment, blocks: bool) -> None:
        self.is_lent = True

    def take_slot_back(self, _: Assignment) -> None:
        self.is_lent = False
