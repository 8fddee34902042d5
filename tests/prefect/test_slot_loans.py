"""Jobs that run others and wait for them: they lend their slot, however they wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import flow
from prefect.futures import as_completed, wait

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import arun_jobs, job_task, run_jobs
from executor_adapter.prefect.engine.waiting import SlotLoan

pytestmark = pytest.mark.usefixtures("prefect_api")

LONG = 30.0
"""Seconds after which one that waits for ever is ended, and its test fails."""


@job_task(pool="thread", retry_attempts=0)
def double(x: int) -> int:
    return 2 * x


@job_task(retry_attempts=0)
async def double_async(x: int) -> int:
    return 2 * x


def bulk_jobs() -> list[Job]:
    return [Job(function=double.fn, args=(x,), pool="thread") for x in range(3)]


def call() -> Any:
    return double(1)


def call_twice_over() -> Any:
    return job_task(call, pool="thread", max_runtime=LONG)()


async def await_it() -> Any:
    return await double_async(1)


async def await_many() -> Any:
    return await asyncio.gather(*(double_async(x) for x in range(3)))


def take_as_completed() -> Any:
    return sorted(future.result() for future in as_completed(double.map(range(3))))


def call_others_between() -> Any:
    return sorted(double(future.result()) for future in as_completed(double.map(range(3))))


def wait_with_a_timeout() -> Any:
    return len(wait(double.map(range(3)), timeout=LONG).done)


def run_many() -> Any:
    return [result.value for result in run_jobs(bulk_jobs())]


async def arun_many() -> Any:
    return [result.value for result in await arun_jobs(bulk_jobs())]


WAYS: dict[Callable[[], Any], Any] = {
    call: 2,
    call_twice_over: 2,
    await_it: 2,
    await_many: [0, 2, 4],
    take_as_completed: [0, 2, 4],
    call_others_between: [0, 4, 8],
    wait_with_a_timeout: 3,
    run_many: [0, 2, 4],
    arun_many: [0, 2, 4],
}


@pytest.mark.parametrize("parent", WAYS, ids=lambda parent: parent.__name__)
def test_a_job_that_waits_for_others_lends_them_the_only_slot(parent: Callable[[], Any]) -> None:
    waiting = job_task(parent, retry_attempts=0, max_runtime=LONG)

    @flow
    def run() -> Any:
        with JobExecutor(max_workers=1):
            return waiting.submit().result()

    assert run() == WAYS[parent]


def test_a_job_that_has_waited_has_its_slot_again() -> None:
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


class _Driver:
    """Notes when a slot is lent."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        self.said.append("lent")
        yield
        self.said.append("taken back")


def test_what_an_attempt_has_left_waiting_says_nothing_of_the_next() -> None:
    driver: Any = _Driver()
    loan = SlotLoan(driver)
    loan.begin()
    loan.begin()
    loan.end()
    assert driver.said == ["lent"]
    loan.close()
    assert driver.said == ["lent", "taken back"]
    loan.end()
    loan.begin()
    assert driver.said == ["lent", "taken back"]
