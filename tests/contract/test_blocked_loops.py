"""Coroutines that block their event loop, and such as do not end when they are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus
from executor_adapter.config import Settings
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError
from tests.contract.conftest import wait_for


class Loops:
    """An executor of four slots, and coroutine functions that end when `let_go` is set."""

    def __init__(self) -> None:
        self.executor = JobExecutor(4, config=Settings())
        self.let_go = threading.Event()
        self.entered = threading.Event()
        self.ran: list[int] = []
        """The threads in which `note` ran."""

    async def block(self) -> None:
        self.entered.set()
        self.let_go.wait(60)

    async def be_deaf(self) -> str:
        self.entered.set()
        while not self.let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
        return "all the same"

    async def hold(self) -> str:
        self.entered.set()
        while not self.let_go.is_set():
            await asyncio.sleep(0.001)
        return "held"

    async def note(self) -> str:
        self.ran.append(threading.get_ident())
        return "ran"

    def submit(self, function: Callable[[], Any], **fields: Any) -> JobFuture:
        return self.executor.submit(Job(**({"function": function, "max_runtime": None, "retry_attempts": 0} | fields)))

    def submit_blocked(self, **fields: Any) -> JobFuture:
        """The job that blocks the loop, which it does when this returns."""
        future = self.submit(self.block, **fields)
        assert self.entered.wait(20)
        return future

    @contextlib.contextmanager
    def in_one_turn(self) -> Iterator[None]:
        """The supervisor, and so the loop, is given at once all that is submitted meanwhile."""
        go_on = threading.Event()
        self.executor._supervisor.call_soon(lambda: (go_on.wait(20), None)[1])
        yield
        go_on.set()

    @property
    def abandoned(self) -> int:
        return self.executor.stats().abandoned_threads


@pytest.fixture
def loops() -> Iterator[Loops]:
    made = Loops()
    yield made
    made.executor.shutdown(timeout=0)
    made.let_go.set()


def assert_timed_out_on_time(future: JobFuture) -> None:
    with pytest.raises(JobTimeoutError):
        future.result(timeout=20)
    assert future.job.error_code == "TIMEOUT_ERROR"
    assert future.job.max_runtime is not None
    assert future.job.max_runtime <= future.job.attempts[0].run_seconds < future.job.max_runtime + 2.0


# --- that block ---


def test_a_coroutine_that_blocks_its_loop_ends_on_time_and_those_behind_it_go_on(loops: Loops) -> None:
    """What comes then has another loop too."""
    blocking = loops.submit_blocked(max_runtime=0.2)
    behind = [loops.submit(loops.note) for _ in range(6)]
    assert_timed_out_on_time(blocking)
    assert [future.result(timeout=20) for future in behind] == ["ran"] * 6
    assert loops.submit(loops.note).result(timeout=20) == "ran"
    assert loops.abandoned == 1


def test_those_that_were_given_to_the_loop_together_with_what_blocks_it_go_on(loops: Loops) -> None:
    with loops.in_one_turn():
        blocking = loops.submit(loops.block, max_runtime=0.2)
        behind = [loops.submit(loops.note) for _ in range(3)]
    assert [future.result(timeout=20) for future in behind] == ["ran"] * 3
    assert_timed_out_on_time(blocking)
    assert loops.abandoned == 1
    loops.let_go.set()
    assert loops.submit(loops.note).result(timeout=20) == "ran"
    assert len(loops.ran) == 4, "one ran on the old loop too"


def test_what_had_begun_on_a_blocked_loop_goes_on_when_it_can(loops: Loops) -> None:
    begun = loops.submit(loops.hold)
    assert loops.entered.wait(20)
    loops.entered.clear()
    assert_timed_out_on_time(loops.submit_blocked(max_runtime=0.2))
    assert not begun.done()
    before = threading.active_count()
    loops.let_go.set()
    assert begun.result(timeout=20) == "held"
    wait_for(lambda: threading.active_count() < before)  # nobody needs the old loop's thread any more


def test_a_loop_that_is_blocked_without_a_limit_is_replaced_at_the_limit_of_what_waits(loops: Loops) -> None:
    """Which has not begun, and never does: it is not what has to be written off."""
    blocking = loops.submit_blocked()
    waiting = loops.submit(loops.hold, max_runtime=0.2)
    assert_timed_out_on_time(waiting)
    assert loops.submit(loops.note).result(timeout=20) == "ran"
    assert not blocking.done()
    assert loops.abandoned == 0


def test_a_job_that_is_cancelled_behind_a_blocked_loop_never_begins(loops: Loops) -> None:
    blocking = loops.submit_blocked()
    waiting = loops.submit(loops.note)
    wait_for(waiting.running)
    waiting.cancel()
    with pytest.raises(JobCancelledError):
        waiting.result(timeout=20)
    loops.let_go.set()
    blocking.result(timeout=20)
    assert loops.submit(loops.note).result(timeout=20) == "ran"
    assert (len(loops.ran), loops.abandoned) == (1, 0)


# --- that are deaf ---


def test_a_coroutine_that_swallows_its_cancel_is_written_off_alone(loops: Loops) -> None:
    """Its loop answers, and is kept."""
    loops.submit(loops.note).result(timeout=20)
    deaf = loops.submit(loops.be_deaf, max_runtime=0.2)
    neighbour = loops.submit(loops.hold)
    assert_timed_out_on_time(deaf)
    assert loops.abandoned == 1
    loops.submit(loops.note).result(timeout=20)
    assert len(set(loops.ran)) == 1
    loops.let_go.set()
    assert neighbour.result(timeout=20) == "held"
    assert deaf.job.status is JobStatus.FAILED


def test_what_a_coroutine_gives_after_its_cancel_does_not_count(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_adapter.pools.in_process.coroutine.COROUTINE_STOP_TIMEOUT", 20.0)
    deaf = loops.submit(loops.be_deaf)
    assert loops.entered.wait(20)
    pool = loops.executor._supervisor.pools.made["coroutine"]
    deaf.cancel()
    wait_for(lambda: pool.loop.stopping)  # type: ignore[attr-defined]
    loops.let_go.set()
    with pytest.raises(JobCancelledError):
        deaf.result(timeout=20)
    assert loops.abandoned == 0
