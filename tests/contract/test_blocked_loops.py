"""Tests coroutines that block their event loop, and coroutines that ignore their cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any, cast
from unittest.mock import Mock

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError
from executor_adapter.pools.base import Assignment, PoolSupervisor
from executor_adapter.pools.in_process.coroutine import CoroutinePool
from executor_adapter.pools.transport.envelope import Outcome
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


class LoopHarness:
    """An executor with four slots, and coroutine functions that end when `release` is set."""

    def __init__(self) -> None:
        self.executor = JobExecutor(4, config=Settings())
        self.release = threading.Event()
        self.entered = threading.Event()
        self.ran: list[int] = []
        """The ids of the threads in which `note` ran."""
        self.holding = threading.main_thread()
        """The thread in which `hold` ran last."""

    async def block(self) -> None:
        self.entered.set()
        self.release.wait(PATIENCE)

    async def ignore_cancel(self) -> str:
        self.entered.set()
        while not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
        return "in spite of it"

    async def hold(self) -> str:
        self.holding = threading.current_thread()
        self.entered.set()
        while not self.release.is_set():
            await asyncio.sleep(0.001)
        return "held"

    async def note(self) -> str:
        self.ran.append(threading.get_ident())
        return "ran"

    def submit(self, function: Callable[[], Any], **fields: Any) -> JobFuture:
        return self.executor.submit(Job(**({"function": function, "max_runtime": None, "retry_attempts": 0} | fields)))

    def submit_blocked(self, **fields: Any) -> JobFuture:
        """Submit a job that blocks the loop, and wait until it does."""
        future = self.submit(self.block, **fields)
        assert self.entered.wait(PATIENCE)
        return future

    @contextlib.contextmanager
    def in_one_turn(self) -> Iterator[None]:
        """Let the supervisor, and so the loop, get everything that is submitted in this block at once."""
        go_on = threading.Event()
        supervisor_of(self.executor).call_soon(lambda: (go_on.wait(PATIENCE), None)[1])
        yield
        go_on.set()

    @property
    def abandoned(self) -> int:
        return self.executor.stats().abandoned_threads


@pytest.fixture
def loops() -> Iterator[LoopHarness]:
    made = LoopHarness()
    yield made
    made.executor.shutdown(timeout=0)
    made.release.set()


def assert_timed_out_on_time(future: JobFuture) -> None:
    """Assert that a job ended by its limit while a loop was blocked, which lasts until the test has ended."""
    with pytest.raises(JobTimeoutError):
        future.result(timeout=PATIENCE)
    assert future.job.error_code == "TIMEOUT_ERROR"
    assert future.job.max_runtime is not None
    assert future.job.max_runtime <= future.job.attempts[0].run_seconds


# --- blocked loops ---


def test_a_coroutine_that_blocks_its_loop_ends_on_time_and_others_continue(loops: LoopHarness) -> None:
    """A coroutine that blocks the loop ends on time, and those behind it and later ones run on another loop."""
    blocking = loops.submit_blocked(max_runtime=0.2)
    behind = [loops.submit(loops.note) for _ in range(6)]
    assert_timed_out_on_time(blocking)
    assert [future.result(timeout=PATIENCE) for future in behind] == ["ran"] * 6
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    assert loops.abandoned == 1


def test_jobs_submitted_together_with_one_that_blocks_the_loop_continue(loops: LoopHarness) -> None:
    """Jobs submitted in the same turn as one that blocks the loop run once, on another loop."""
    with loops.in_one_turn():
        blocking = loops.submit(loops.block, max_runtime=0.2)
        behind = [loops.submit(loops.note) for _ in range(3)]
    assert [future.result(timeout=PATIENCE) for future in behind] == ["ran"] * 3
    assert_timed_out_on_time(blocking)
    assert loops.abandoned == 1
    loops.release.set()
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    assert len(loops.ran) == 4, "one ran on the old loop too"


def test_a_job_that_had_started_on_a_blocked_loop_continues_when_it_can(loops: LoopHarness) -> None:
    """A coroutine that had started on a blocked loop completes when the loop is free again, whose thread then ends."""
    started = loops.submit(loops.hold)
    assert loops.entered.wait(PATIENCE)
    loops.entered.clear()
    assert_timed_out_on_time(loops.submit_blocked(max_runtime=0.2))
    assert not started.done()
    loops.release.set()
    assert started.result(timeout=PATIENCE) == "held"
    wait_for(lambda: not loops.holding.is_alive())


def test_a_loop_blocked_without_a_limit_is_replaced_at_the_limit_of_a_waiting_job(loops: LoopHarness) -> None:
    """A loop blocked by a job without a limit is replaced at the limit of a job that waits on it."""
    blocking = loops.submit_blocked()
    waiting = loops.submit(loops.hold, max_runtime=0.2)
    assert_timed_out_on_time(waiting)
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    assert not blocking.done()
    assert loops.abandoned == 0


def test_a_job_cancelled_behind_a_blocked_loop_never_starts(loops: LoopHarness) -> None:
    """A job that is cancelled while its loop is blocked never starts."""
    blocking = loops.submit_blocked()
    waiting = loops.submit(loops.note)
    wait_for(waiting.running)
    waiting.cancel()
    with pytest.raises(JobCancelledError):
        waiting.result(timeout=PATIENCE)
    loops.release.set()
    blocking.result(timeout=PATIENCE)
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    assert (len(loops.ran), loops.abandoned) == (1, 0)


def refuse_loops(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the system refuse so many further loops."""
    check = Mock(side_effect=chain(repeat(OSError("Too many open files"), count), repeat(None)))
    monkeypatch.setattr("executor_adapter.pools.in_process.coroutine._check_descriptors", check)


def test_jobs_behind_a_blocked_loop_wait_for_one_that_the_system_refuses(
    loops: LoopHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other loop can be made at first, jobs that a blocked one has not started run once one can be made."""
    blocking = loops.submit_blocked(max_runtime=0.2)
    behind = [loops.submit(loops.note) for _ in range(3)]
    refuse_loops(monkeypatch, 2)
    assert [future.result(timeout=PATIENCE) for future in behind] == ["ran"] * 3
    assert_timed_out_on_time(blocking)


# --- ignored cancellation ---


def loop_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "executor-coroutines"}


def test_a_replaced_loop_ends_that_runs_no_job(loops: LoopHarness) -> None:
    """A loop is stopped that is replaced because what a job has left there blocks it, and that runs nothing else."""
    before = loop_threads()

    async def leave_blocked() -> None:
        asyncio.get_running_loop().call_soon(loops.release.wait, 60)

    loops.submit(leave_blocked).result(timeout=PATIENCE)
    assert loops.submit(loops.note, max_runtime=0.1).exception(timeout=PATIENCE) is not None
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    loops.release.set()
    loops.executor.shutdown()
    wait_for(lambda: loop_threads() <= before)


def test_a_coroutine_that_ignores_its_cancellation_is_abandoned_alone(loops: LoopHarness) -> None:
    """A coroutine that ignores its cancellation is abandoned, and its loop keeps running the others."""
    loops.submit(loops.note).result(timeout=PATIENCE)
    ignoring = loops.submit(loops.ignore_cancel, max_runtime=0.2)
    neighbour = loops.submit(loops.hold)
    assert_timed_out_on_time(ignoring)
    assert loops.abandoned == 1
    loops.submit(loops.note).result(timeout=PATIENCE)
    assert len(set(loops.ran)) == 1
    loops.release.set()
    assert neighbour.result(timeout=PATIENCE) == "held"
    assert ignoring.job.status is JobStatus.FAILED


def test_the_value_of_a_cancelled_coroutine_does_not_count(loops: LoopHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that returns a value after its cancellation is cancelled all the same."""
    monkeypatch.setattr("executor_adapter.pools.in_process.coroutine.COROUTINE_STOP_TIMEOUT", 20.0)
    ignoring = loops.submit(loops.ignore_cancel)
    assert loops.entered.wait(PATIENCE)
    pool = supervisor_of(loops.executor).pools.made["coroutine"]
    ignoring.cancel()
    wait_for(lambda: pool.loop.stopping)  # type: ignore[attr-defined]
    loops.release.set()
    with pytest.raises(JobCancelledError):
        ignoring.result(timeout=PATIENCE)
    assert loops.abandoned == 0


# --- what one coroutine does to the loop of all ---


async def stop_the_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)
    return "stopped it"


async def cancel_all_tasks() -> str:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    return "cancelled them"


async def hold_in_a_child(loops: LoopHarness) -> str:
    return await asyncio.create_task(loops.hold())


@pytest.mark.parametrize("attack", [stop_the_loop, cancel_all_tasks])
def test_a_coroutine_that_stops_or_cancels_everything_harms_no_other(
    loops: LoopHarness, caplog: pytest.LogCaptureFixture, attack: Callable[[], Any]
) -> None:
    """A coroutine that stops its loop, or cancels all tasks there, is warned of; its neighbours and later jobs run."""
    neighbours = [loops.submit(loops.hold), loops.submit(functools.partial(hold_in_a_child, loops))]
    wait_for(lambda: all(neighbour.running() for neighbour in neighbours))
    assert loops.submit(attack).result(timeout=PATIENCE) in ("stopped it", "cancelled them")
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"
    loops.release.set()
    assert [neighbour.result(timeout=PATIENCE) for neighbour in neighbours] == ["held", "held"]
    assert "each job may cancel only its own tasks" in caplog.text or "a job stopped the event loop" in caplog.text


def test_timeouts_and_groups_of_a_coroutine_still_cancel_its_own_tasks(loops: LoopHarness) -> None:
    """A job's own timeouts and task groups, and its own cancels, work as on any loop."""

    async def cancel_own() -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(0.01):
                await loops.hold()
        except TimeoutError:
            seen.append("timeout")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(loops.hold())
                raise ValueError
        except ExceptionGroup:
            seen.append("group")
        child = asyncio.create_task(loops.hold())
        await asyncio.sleep(0)
        child.cancel()
        await asyncio.wait([child])
        return [*seen, f"cancelled: {child.cancelled()}"]

    assert loops.submit(cancel_own).result(timeout=PATIENCE) == ["timeout", "group", "cancelled: True"]


def test_a_task_that_outlives_its_job_can_be_cancelled_by_another(loops: LoopHarness) -> None:
    """A task that a finished job left running can be cancelled by another job's code."""
    left: list[asyncio.Task[str]] = []

    async def leave() -> None:
        left.append(asyncio.create_task(loops.hold()))

    async def cancel() -> bool:
        left[0].cancel()
        await asyncio.wait(left)
        return left[0].cancelled()

    loops.submit(leave).result(timeout=PATIENCE)
    assert loops.submit(cancel).result(timeout=PATIENCE) is True


def test_a_broken_loop_fails_what_runs_there_and_is_replaced(loops: LoopHarness) -> None:
    """When a job breaks the loop itself, what runs there fails with a code at once, and later jobs run on another."""

    async def break_loop() -> None:
        asyncio.get_running_loop().time = None  # type: ignore[assignment,method-assign]
        await asyncio.sleep(0)

    async def hold() -> None:
        loops.entered.set()
        await asyncio.get_running_loop().create_future()  # A sleep would ask the broken clock by itself.

    once = RetryPolicy(retry_attempts=0, crash_attempts=0)
    neighbour = loops.executor.submit(Job(function=hold, retry=once))
    assert loops.entered.wait(PATIENCE)
    breaking = loops.executor.submit(Job(function=break_loop, retry=once))
    for future in (neighbour, breaking):
        assert "its event loop broke" in str(future.exception(timeout=PATIENCE))
        assert future.job.error_code == "WORKER_CRASHED"
    assert loops.submit(loops.note).result(timeout=PATIENCE) == "ran"


class LastTurn:
    """A supervisor in its last turn: it makes each call at once, and no timer of it is due."""

    def now(self) -> float:
        return 0.0

    def call_at(self, when: float, callback: Callable[[], object]) -> None: ...

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        callback(*args)

    def started(self, assignment: Assignment, at: float) -> None: ...

    def ended(self, assignment: Assignment, outcome: Outcome) -> None: ...


def test_a_loop_that_is_found_blocked_after_the_end_has_no_successor() -> None:
    """Its pool is closed then, and would not stop another one."""
    before = {thread.name for thread in threading.enumerate()}
    pool = CoroutinePool(cast(PoolSupervisor, LastTurn()), 1)
    job = Job(function=asyncio.sleep, args=(0,))
    assignment = Assignment(job, 1, CoroutinePool.prepare(job))
    pool.start(assignment)
    pool.flush()
    wait_for(lambda: not pool.busy)
    pool.close(lambda: None)
    pool.on_blocked(assignment)
    assert pool.loop is None
    wait_for(lambda: "executor-coroutines" not in {thread.name for thread in threading.enumerate()} - before)
