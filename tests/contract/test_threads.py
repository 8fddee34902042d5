"""Tests races of a thread job's stop with its start and its result."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, Progress, RetryPolicy, current_job
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError, SoftTimeoutError
from executor_adapter.pools.in_process import thread
from executor_adapter.pools.transport.envelope import Ending
from executor_adapter.worker.context import JobContext
from tests.contract import functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.contract.process_pool.harness import DueCall, Harness, harness
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def pool() -> str:
    return "thread"


@pytest.fixture
def threads() -> Iterator[Harness]:
    """A harness with one thread."""
    with harness(1, kind="thread") as made:
        yield made


def threads_of(executor: JobExecutor) -> Any:
    return supervisor_of(executor).pools.made["thread"]


# --- stopped before the start ---


def test_a_job_cancelled_before_its_thread_wakes_never_starts(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A job that is cancelled before its thread wakes up never starts, and the thread is used again."""
    executor = make_executor(1)
    first = executor.run(make_job(threading.get_ident))
    started = threading.Event()
    (worker,) = threads_of(executor).idle_threads
    wait_for(lambda: worker.asleep)
    asleep, worker.wake_ups = worker.wake_ups, SimpleQueue()  # wake-ups do not arrive for now
    future = executor.submit(make_job(started.set))
    wait_for(future.running)
    future.cancel()
    with pytest.raises(JobCancelledError):
        future.result(timeout=PATIENCE)
    worker.wake_ups = asleep
    asleep.put(True)
    assert executor.run(make_job(threading.get_ident)) == first, "a usable thread was not used again"
    assert not started.is_set()
    assert executor.stats().abandoned_threads == 0


def test_a_job_cancelled_while_its_thread_takes_it_never_starts(
    make_executor: MakeExecutor, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job cancelled after its thread took it, and before an exception can be raised in it, never starts."""
    executor = make_executor(1)
    executor.run(make_job(functions.add, 1))
    started, takes_job, go_on = threading.Event(), threading.Event(), threading.Event()

    def wait_and_read_clock() -> float:
        takes_job.set()
        go_on.wait(PATIENCE)
        return time.monotonic()

    monkeypatch.setattr(thread, "time", SimpleNamespace(monotonic=wait_and_read_clock))
    monkeypatch.setattr(thread, "THREAD_STOP_TIMEOUT", 20.0)
    future = executor.submit(make_job(started.set))
    assert takes_job.wait(PATIENCE)
    (worker,) = threads_of(executor).busy_threads
    future.cancel()
    wait_for(lambda: worker.stopping)
    go_on.set()
    with pytest.raises(JobCancelledError):
        future.result(timeout=PATIENCE)
    assert not started.is_set()
    assert executor.stats().abandoned_threads == 0


# --- stopped while running ---


def test_a_function_in_python_ends_at_its_limit_and_so_does_its_thread(
    executor: JobExecutor, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python function ends at max_runtime, its thread ends too, and no thread is abandoned."""
    monkeypatch.setattr(thread, "THREAD_STOP_TIMEOUT", 20.0)
    runs_in: list[threading.Thread] = []
    cleaned_up = threading.Event()

    def work() -> None:
        runs_in.append(threading.current_thread())
        try:
            functions.spin(60.0)
        finally:
            cleaned_up.set()

    future = executor.submit(make_job(work, max_runtime=0.2, retry_attempts=0))
    with pytest.raises(JobTimeoutError):
        future.result(timeout=PATIENCE)
    assert cleaned_up.is_set()
    runs_in[0].join(PATIENCE)
    assert not runs_in[0].is_alive()
    assert executor.stats().abandoned_threads == 0


def hold(gate: threading.Event) -> str:
    gate.wait(PATIENCE)
    return "held"


def ignore_stop(started: threading.Event) -> str:
    """Return a value in spite of the exception that should end it."""
    try:
        started.set()
        functions.spin(20.0)
    except BaseException:
        return "in spite of it"
    return "never stopped"


def test_the_end_of_one_does_not_undo_the_stop_of_the_one_behind_it(threads: Harness) -> None:
    """A late report of the first job does not undo the stop of the job behind it."""
    gate, started = threading.Event(), threading.Event()
    first, second = threads.submit(hold, gate, short=True), threads.submit(ignore_stop, started, short=True)
    threads.turn(0)
    assert not threads.pending
    gate.set()
    assert started.wait(PATIENCE)
    threads.pool.stop(second, grace=20.0)
    wait_for(lambda: second.ended_at)
    assert threads.value(first) == "held"
    assert threads.ending(second) is Ending.STOPPED
    assert threads.pool.busy == 0


# --- late reports ---


async def ignore_stop_on_loop(started: threading.Event) -> str:
    try:
        started.set()
        await asyncio.sleep(20.0)
    except asyncio.CancelledError:
        return "in spite of it"
    return "never stopped"


@pytest.mark.parametrize(("kind", "function"), [("thread", ignore_stop), ("coroutine", ignore_stop_on_loop)])
def test_a_job_that_has_ended_is_not_abandoned_before_its_report_arrives(kind: str, function: Any) -> None:
    """A stopped job that has ended is not abandoned while its report is on its way."""
    started = threading.Event()
    with harness(1, kind=kind) as made:
        assignment = made.submit(function, started)
        made.turn(0)
        made.pool.flush()
        assert started.wait(PATIENCE)
        worker = assignment.worker
        made.pool.stop(assignment, grace=20.0)
        wait_for(lambda: assignment.ended_at)
        made.pool.abandon(worker, assignment)
        assert made.ending(assignment) is Ending.STOPPED
        assert made.pool.abandoned == 0


def test_a_soft_timeout_that_comes_too_late_does_not_lose_the_result(
    threads: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SoftTimeoutError that reaches the thread after its function has returned does not lose the result."""
    stamps = itertools.count()

    def stamp() -> float:
        if next(stamps) == 1:
            raise SoftTimeoutError("too late")
        return time.monotonic()

    monkeypatch.setattr(thread, "time", SimpleNamespace(monotonic=stamp))
    assert threads.value(threads.submit(functions.add, 1)) == 2


def work_within(condition: threading.Condition) -> None:
    with condition:
        while True:
            time.sleep(0.001)


def test_an_exception_does_not_come_between_a_lock_and_who_gives_it_back(threads: Harness) -> None:
    """What is raised in a thread that waits for a lock comes when the function has it, so that it gives it back."""
    lock = threading.Lock()
    lock.acquire()
    assignment = threads.submit(work_within, threading.Condition(lock))
    threads.until_running(assignment)
    wait_for(lambda: "with condition" in assignment.worker.position(assignment))
    threads.pool.interrupt(assignment)
    lock.release()
    assert (threads.ending(assignment), type(threads.error(assignment))) == (Ending.RAISED, SoftTimeoutError)
    assert lock.acquire(blocking=False)


def test_a_thread_that_takes_a_lock_for_good_is_looked_at_ever_less_often(threads: Harness) -> None:
    """One that is abandoned while it waits for a lock may wait for ever: that costs the executor next to nothing."""
    lock = threading.Lock()
    lock.acquire()
    assignment = threads.submit(work_within, threading.Condition(lock))
    threads.until_running(assignment)
    worker = assignment.worker
    wait_for(lambda: "with condition" in worker.position(assignment))
    waits, call_at = list[float](), threads.call_at

    def note(when: float, callback: Callable[[], None]) -> DueCall:
        waits.append(when - threads.now())
        return call_at(threads.now(), callback)

    threads.call_at = note  # type: ignore[method-assign]
    threads.ask_to_stop(assignment, grace=0)
    threads.until(lambda: max(waits, default=0.0) > 3600)
    assert len(waits) < 30
    lock.release()
    threads.until(lambda: lock.acquire(blocking=False))  # The function has ended.


async def hold_on_loop(gate: threading.Event) -> str:
    while not gate.is_set():
        await asyncio.sleep(0.001)
    return "held"


@pytest.mark.parametrize(("kind", "function"), [("thread", hold), ("coroutine", hold_on_loop)])
def test_a_job_that_returned_in_time_is_not_timed_out_by_a_late_supervisor(
    executor: JobExecutor, monkeypatch: pytest.MonkeyPatch, kind: Any, function: Any
) -> None:
    """A job that returned before its limit completes though the supervisor learns of it after the limit."""
    supervisor = supervisor_of(executor)
    gate, is_behind, catch_up = threading.Event(), threading.Event(), threading.Event()

    def fall_behind() -> None:
        is_behind.set()
        catch_up.wait(PATIENCE)

    future = executor.submit(Job(function=function, args=(gate,), pool=kind, max_runtime=PATIENCE, retry_attempts=0))
    wait_for(future.running)
    supervisor.call_soon(fall_behind)
    assert is_behind.wait(PATIENCE)
    assignment = future.job.live.assignment
    gate.set()
    wait_for(lambda: assignment.ended_at)
    monkeypatch.setattr(supervisor, "now", lambda: time.monotonic() + 60.0)
    catch_up.set()
    assert future.result(timeout=PATIENCE) == "held"
    assert future.job.status is JobStatus.COMPLETED
    (attempt,) = future.job.attempts
    assert (attempt.error_code, attempt.kill_seconds) == (None, None)


# --- abandoned ---


def test_an_abandoned_attempt_changes_nothing_of_the_next() -> None:
    """What an attempt that is over still reports is no progress, and no checkpoint, of the attempt that runs."""
    contexts: list[JobContext] = []

    def attempt() -> tuple[Progress | None, Any]:
        contexts.append(current_job())
        match len(contexts):
            case 1:
                raise ConnectionError
            case 2:
                contexts[1].progress(1, 2, "new")
                contexts[1].checkpoint("new")
                contexts[0].progress(99, 100, "old")
                contexts[0].checkpoint("old")
                raise ConnectionError
            case _:
                return job.progress, contexts[2].checkpoint_value

    with JobExecutor(1) as executor:
        job = Job(function=attempt, pool="thread", retry=RetryPolicy(retry_attempts=2, retry_delay=0.0))
        assert executor.submit(job).result(PATIENCE) == (Progress(1, 2, "new"), "new")
