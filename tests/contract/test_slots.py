"""Tests how many attempts run at once: by default, by a number for all pools together, and by one for each pool."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from typing import Any

import numpy as np
import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, JobFuture
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.pools.memory.control_groups import processor_quota
from executor_adapter.supervision import scheduling
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import SlotLimits
from executor_adapter.testing import InlineExecutor
from tests.insides import make_dispatcher
from tests.waiting import PATIENCE, wait_for

MANY = 40


def executor_with(slots: Any = None, **executor: Any) -> JobExecutor:
    return JobExecutor(slots, config=Settings(executor=ExecutorSettings(**executor)))


def test_by_default_a_pool_has_as_many_slots_as_with_the_standard_library_and_prefect() -> None:
    """Processes as many as processors of this process, 64 threads, 1,000 coroutines; a setting wins over that."""
    count = len(os.sched_getaffinity(0))
    processors = min(count, math.ceil(processor_quota() or count))
    with executor_with() as executor:
        slots = executor.max_workers
        assert isinstance(slots, dict)
        assert (slots["process"], slots["thread"], slots["coroutine"]) == (processors, 64, 1000)
    with executor_with(max_workers={"process": 3}) as executor:
        assert executor.max_workers == {**slots, "process": 3}
    with executor_with(max_workers=5) as executor:
        assert executor.max_workers == 5
    with executor_with(2, max_workers=5) as executor:
        assert executor.max_workers == 2


def test_the_number_of_slots_may_be_one_of_numpy() -> None:
    """Any integer is a number of slots, as for other counts."""
    with executor_with(np.int64(3)) as executor:
        assert executor.max_workers == 3


def test_forty_threads_and_forty_coroutines_run_at_once() -> None:
    """Without a number, jobs that wait for one another all run: none of them waits for a slot."""
    threads, tasks = threading.Barrier(MANY), 0

    async def meet() -> None:
        nonlocal tasks
        tasks += 1
        while tasks < MANY:
            await asyncio.sleep(0.01)

    with executor_with() as executor:
        futures = [executor.submit(Job(function=threads.wait, args=(60,))) for _ in range(MANY)]
        futures += [executor.submit(Job(function=meet, max_runtime=PATIENCE)) for _ in range(MANY)]
        assert {future.exception(PATIENCE) for future in futures} == {None}


def test_a_pool_without_a_free_slot_holds_up_no_other() -> None:
    """With a number for each pool, a full pool runs no more than that, and jobs of other pools pass those that wait."""
    gate = threading.Event()
    with executor_with({"thread": 2}) as executor:
        waiting = [executor.submit(Job(function=gate.wait, args=(60,))) for _ in range(5)]
        assert executor.submit(Job(function=asyncio.sleep, args=(0, "passed"))).result(PATIENCE) == "passed"
        assert executor.submit(Job(function=len, args=((),), pool="process")).result(PATIENCE) == 0
        assert len(executor.running()) == 2
        gate.set()
        assert [future.result(PATIENCE) for future in waiting] == [True] * 5


def test_a_number_counts_over_all_pools_in_the_order_of_priority_and_arrival() -> None:
    """With one number for all, a job of any pool waits for the jobs before it."""
    gate, order = threading.Event(), []

    def note(name: str) -> None:
        order.append(name)

    async def note_async(name: str) -> None:
        order.append(name)

    with executor_with(1) as executor:
        first = executor.submit(Job(function=gate.wait, args=(60,)))
        executor.submit(Job(function=note, args=("thread",)))
        executor.submit(Job(function=note_async, args=("coroutine",)))
        executor.submit(Job(function=note, args=("second thread",)))
        executor.submit(Job(function=note_async, args=("urgent",), priority=1))
        gate.set()
        first.result(PATIENCE)
    assert order == ["urgent", "thread", "coroutine", "second thread"]


def test_slots_may_change_between_a_number_and_a_mapping() -> None:
    """A number that replaces a mapping counts for the jobs that wait, and a mapping for the pools."""
    gate = threading.Event()
    with executor_with({"thread": 1}) as executor:
        futures = [executor.submit(Job(function=gate.wait, args=(60,))) for _ in range(3)]
        executor.max_workers = 3
        barrier = threading.Barrier(2)
        executor.max_workers = {"thread": 5}
        futures += [executor.submit(Job(function=barrier.wait, args=(60,))) for _ in range(2)]
        assert sorted(future.result(PATIENCE) for future in futures[3:]) == [0, 1]
        gate.set()


@pytest.mark.parametrize(
    ("max_workers", "message"),
    [
        ({"threads": 2}, "max_workers: 'threads' is not a pool: use coroutine, thread, process, ssh, dask, ray"),
        ({"thread": 0}, "max_workers['thread']=0 leaves no worker: use at least 1"),
        ("4", "max_workers='4' is not a whole number: use 1 or more, or None for the defaults"),
    ],
)
def test_slots_that_cannot_be_are_refused(max_workers: Any, message: str) -> None:
    """A name that is not a pool's, or a number below one, is refused with the value and the way out."""
    with pytest.raises(ValueError) as refused:  # The message is compared as a whole.
        JobExecutor(max_workers)
    assert str(refused.value) == message


class Slots:
    """A dispatcher with a clock that the test moves, whose jobs never end."""

    def __init__(self, limits: SlotLimits) -> None:
        self.time = 0.0
        self.dispatcher = make_dispatcher(limits, now=lambda: self.time)
        self.jobs = [Job(function=len) for _ in range(3)]
        for job in self.jobs:
            job.live.pool = "thread"
            self.dispatcher.push(job)

    def turn(self, at: float) -> float:
        self.time = at
        self.dispatcher.run(self.dispatcher.reserve, lambda job: False)
        return self.dispatcher.shortage_due


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (SlotLimits(1), "2 jobs wait for a slot, the next one for 10 s, since all 1 are in use: raise max_workers of"),
        (
            SlotLimits(of_pool={"thread": 2}),
            "1 jobs of pool='thread' wait for a slot, the next one for 10 s, since all 2 are in use: raise max_work",
        ),
    ],
)
def test_jobs_that_wait_for_slots_are_reported_once(
    limits: SlotLimits, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten seconds in which jobs waited for a slot, one line says how many do and which number to raise."""
    slots = Slots(limits)
    assert slots.turn(5.0) == 15.0
    assert slots.turn(14.9) == 15.0
    assert caplog.messages == []
    assert slots.turn(15.0) == math.inf
    slots.turn(60.0)
    (message,) = caplog.messages
    assert message.startswith(told)


@pytest.mark.parametrize("need", [{"resources": {"licence": 1}}, {"tool_name": "counted"}])
def test_jobs_that_wait_for_what_a_waiting_job_holds_are_reported(
    need: dict[str, Any], caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    """A job that waits for one that needs its licence, or its tool's only place, is named in the log: neither ends."""
    mocker.patch.object(scheduling, "SHORTAGE_SECONDS", 0.0)
    settings = Settings(tools={"counted": {"max_concurrent": 1}})
    with JobExecutor(4, config=settings, capacity={"licence": 1}) as executor:
        inner: list[JobFuture] = []

        def outer() -> None:
            inner.append(executor.submit(Job(function=len, args=("",), pool="thread", **need)))
            inner[0].result(timeout=PATIENCE)

        future = executor.submit(Job(function=outer, pool="thread", retry_attempts=0, **need))
        wait_for(lambda: caplog.messages)
        inner[0].cancel()
        assert isinstance(future.exception(timeout=PATIENCE), JobCancelledError)
    assert caplog.messages[0].startswith("1 jobs wait for resources or for their tool, and all that run (1) wait for o")


def test_jobs_that_follow_one_another_quickly_do_not_wait_for_slots(caplog: pytest.LogCaptureFixture) -> None:
    """Where all slots are in use for long, but the next job has been queued just now, nothing is said."""
    slots = Slots(SlotLimits(of_pool={"thread": 2}))
    assert slots.turn(5.0) == 15.0
    slots.jobs[2].live.queued_at = 14.0
    assert slots.turn(15.0) == 24.0
    assert caplog.messages == []


def test_no_shortage_of_slots_is_due_while_the_lease_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """A host whose lease is over, as in an outage of its store, waits for that alone: it does not wake for slots."""
    slots = Slots(SlotLimits(1))
    assert slots.turn(5.0) == 15.0
    slots.dispatcher.set_lease(0.0)
    assert slots.turn(16.0) == math.inf
    assert caplog.messages == []
    slots.dispatcher.set_lease(math.inf)
    assert slots.turn(20.0) == 30.0


def test_the_supervisor_wakes_to_report_that_jobs_wait(caplog: pytest.LogCaptureFixture) -> None:
    """The line is written when it is due, though nothing else happens; and not where a slot became free before."""
    caplog.set_level(logging.WARNING, "executor_adapter")
    with InlineExecutor(1) as executor:
        drivers = [executor.drive(Job(function=len)) for _ in range(3)]
        drivers[0].acquire()
        waits = drivers[1].acquire()
        executor.clock.advance(9.0)
        drivers[0].complete()
        assert waits.done()
        executor.clock.advance(30.0)
        assert caplog.messages == []
        drivers[2].acquire()
        executor.clock.advance(10.0)
        assert len(caplog.messages) == 1
        for driver in drivers:
            driver.complete()


def test_a_job_is_given_resources_only_where_it_has_a_slot() -> None:
    """Jobs that waited for a resource start in their order, and none takes it from others without a slot."""
    dispatcher = make_dispatcher(
        SlotLimits(of_pool={"process": 1, "coroutine": 9}), Capacity({"license": 2, "seat": 1}, ())
    )
    started: list[str] = []

    def push(pool: str, name: str, **resources: float) -> Job:
        job = Job(function=len, job_id=name, resources=resources)
        job.live.pool, job.live.queued_at = pool, float(len(jobs))
        job.live.resources = dispatcher.resources.needs_of(job, pool)
        jobs.append(job)
        dispatcher.push(job)
        return job

    def run() -> None:
        def start(job: Job) -> None:
            started.append(job.job_id)
            dispatcher.reserve(job)

        dispatcher.run(start, lambda job: False)

    jobs: list[Job] = []
    holder = push("coroutine", "holder", license=2)
    run()
    push("process", "first", license=1)
    push("process", "second", license=1)
    push("coroutine", "other", license=1, seat=1)
    run()
    assert started == ["holder"]
    dispatcher.unreserve(holder)
    dispatcher.attempt_ended(holder)
    run()
    assert started == ["holder", "first", "other"]
