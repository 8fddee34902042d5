"""Tests of ended jobs: what they keep, who is notified of their end, and their final status."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, RetryPolicy, RetryRule
from executor_adapter.config import Settings
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError
from executor_adapter.job.transition import Transition
from tests.contract.conftest import MakeExecutor
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

ANY_ERROR = RetryPolicy(retry_delay=0.01, rules=(RetryRule(codes=("*",)),))


class Argument:
    """Stands for a large value."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Argument, ()


def returns(argument: Argument) -> Callable[[Argument], object]:
    return lambda other: argument is other


def raises(argument: Argument) -> Callable[[Argument], object]:
    def call(other: Argument) -> None:
        raise ValueError(argument is other)

    return call


def waits(argument: Argument) -> Callable[[Argument], object]:
    async def call(other: Argument) -> bool:
        return argument is other

    return call


@pytest.mark.parametrize(
    ("make_function", "pool"),
    [(returns, "thread"), (raises, "thread"), (waits, "thread"), (waits, "coroutine"), (returns, "process")],
)
def test_a_finished_job_releases_its_values(
    make_executor: MakeExecutor, make_function: Callable[[Argument], Any], pool: str
) -> None:
    """A finished job's function, arguments and closure are released with the caller's last reference."""
    executor = make_executor(2)
    references = []
    for _ in range(10):
        captured, argument = Argument(), Argument()
        references += [weakref.ref(captured), weakref.ref(argument)]
        job = Job(
            function=make_function(captured), args=(argument,), pool=pool, retry_attempts=1, retry_delay=0, deadline=60
        )
        executor.submit(job).exception(timeout=PATIENCE)
    del captured, argument, job

    def all_are_released() -> bool:
        gc.collect()
        return not any(reference() for reference in references)

    wait_for(all_are_released)


class Hooked(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None:
        """Do nothing, so that attempts run through `execute_job`."""


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("kind", [JobExecutor, Hooked])
@pytest.mark.parametrize("store", [None, "memory:", "sqlite"])
def test_an_executor_that_nobody_holds_is_closed(
    tmp_path: Path, kind: type[JobExecutor], store: str | None, runs: bool
) -> None:
    """It is shut down, with its store and its threads, whether or not it has run jobs."""
    url = f"sqlite:///{tmp_path}/jobs.db" if store == "sqlite" else store
    executor = kind(1, config=Settings(), store=url)
    if runs:
        executor.run(Job(function=int, pool="thread"))
    closed = supervisor_of(executor).thread.closed
    del executor

    def is_closed() -> bool:
        gc.collect()
        return closed.is_set()

    wait_for(is_closed)


# --- observers and callbacks ---


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_observer_that_raises_system_exit_ends_nothing(
    make_executor: MakeExecutor, kind: type[BaseException]
) -> None:
    """An observer that raises SystemExit ends neither the supervisor nor a job."""
    transitions: list[Transition] = []

    def observe(transition: Transition) -> None:
        raise kind

    executor = make_executor(1, observers=(observe, transitions.append))
    assert executor.submit(Job(function=int)).result(timeout=PATIENCE) == 0
    executor.shutdown()
    assert [transition.status for transition in transitions] == ["pending", "running", "completed"]


def test_a_shutdown_waits_for_callbacks(make_executor: MakeExecutor) -> None:
    """`shutdown` waits for callbacks of futures, also if one raises."""
    executor, called = make_executor(2), []

    def call(future: JobFuture) -> None:
        time.sleep(0.05)
        called.append(future.job)
        sys.exit("a job has finished")

    jobs = [Job(function=time.sleep, args=(0.05,)) for _ in range(3)]
    for job in jobs:
        executor.submit(job).add_done_callback(call)
    executor.shutdown()
    assert set(called) == set(jobs)


def test_a_callback_may_shut_its_executor_down(make_executor: MakeExecutor) -> None:
    """A callback may shut its executor down; callbacks behind it are still called."""
    executor, was_shut_down, called = make_executor(1), threading.Event(), []

    def shut_down(future: Any) -> None:
        executor.shutdown()
        was_shut_down.set()

    future = executor.submit(Job(function=time.sleep, args=(0.05,)))
    future.add_done_callback(shut_down)
    future.add_done_callback(called.append)
    assert was_shut_down.wait(PATIENCE)
    executor.shutdown()
    assert called == [future]


# --- final status ---


class HookedExecutor(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None: ...


@pytest.mark.parametrize("kind", [JobExecutor, HookedExecutor])
def test_a_job_that_waited_for_a_cancelled_job_fails(kind: type[JobExecutor]) -> None:
    """A job that waited for a cancelled job fails and is not retried."""
    with kind(2, config=Settings()) as executor:
        other = executor.submit(Job(function=time.sleep, args=(30,), pool="process"))
        future = executor.submit(Job(function=other.result, retry_delay=0.01))
        wait_for(lambda: other.running() and future.running())
        other.cancel()
        with pytest.raises(JobCancelledError, match=other.job.job_id):
            future.result(timeout=PATIENCE)
        assert (other.job.status, future.job.status) == (JobStatus.CANCELLED, JobStatus.FAILED)
        assert (future.job.error_code, len(future.job.attempts)) == ("CANCELLED", 1)


@pytest.mark.parametrize("kind", [JobExecutor, HookedExecutor])
def test_no_rule_retries_a_job_that_was_cancelled(kind: type[JobExecutor]) -> None:
    """No retry rule retries a cancelled job."""
    with kind(1, config=Settings()) as executor:
        future = executor.submit(Job(function=time.sleep, args=(30,), pool="process", retry=ANY_ERROR))
        wait_for(executor.running)
        future.cancel()
        assert isinstance(future.exception(timeout=PATIENCE), JobCancelledError)
        assert (future.job.status, len(future.job.attempts)) == (JobStatus.CANCELLED, 1)


def test_no_rule_retries_a_job_past_its_deadline(make_executor: MakeExecutor) -> None:
    """No retry rule retries a job past its deadline."""
    executor = make_executor(1)
    executor.run(Job(function=int, pool="process"))  # a worker is running, so the next job starts at once
    future = executor.submit(Job(function=time.sleep, args=(30,), pool="process", retry=ANY_ERROR, deadline=1))
    error = future.exception(timeout=PATIENCE)
    assert isinstance(error, JobTimeoutError)
    assert (future.job.error_code, len(future.job.attempts)) == ("DEADLINE_EXCEEDED", 1)


def test_a_driver_does_not_retry_a_cancelled_job(make_executor: MakeExecutor) -> None:
    """A driver of a cancelled job gets the decision not to retry."""
    executor = make_executor(1)
    driver = executor.drive(Job(function=time.sleep, args=(30,), pool="process", retry=ANY_ERROR))
    driver.acquire().result(timeout=PATIENCE)
    attempt = driver.attempt()
    driver.cancel()
    error = attempt.exception(timeout=PATIENCE)
    assert isinstance(error, JobCancelledError)
    assert not driver.decide(error).retry
    driver.fail(error)
    wait_for(lambda: driver.job.status is JobStatus.CANCELLED)
