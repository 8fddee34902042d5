"""Tests users' code that Python calls: it runs where the function ran, or on the thread that asks for the result."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from executor_adapter import Job, JobFuture, JobStatus, RetryPolicy, RetryRule, Transition
from executor_adapter.exceptions import JobSerializationError, JobTimeoutError
from executor_adapter.worker import values
from tests.contract import slow_code
from tests.contract.conftest import MakeExecutor
from tests.contract.functions import add
from tests.contract.process_pool.harness import open_descriptors
from tests.contract.slow_code import (
    OF_WORKER,
    Noting,
    accept,
    gate,
    large,
    raise_hanging,
    raise_noting,
    raise_of_worker,
    return_gated,
    return_noting,
    return_only_there,
    return_only_there_for,
    seen,
    threads_of,
)
from tests.waiting import PATIENCE, wait_for


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()
    gate.clear()


def test_no_code_of_users_runs_on_the_supervisor_s_thread(make_executor: MakeExecutor) -> None:
    """Values, arguments and errors of threads that nobody else holds are read and freed on other threads."""
    executor = make_executor(2)
    executor.submit(Job(function=return_noting, args=("value",), pool="thread"))
    executor.submit(Job(function=accept, args=(Noting("argument"),), pool="thread"))
    executor.submit(Job(function=[Noting("list")].count, args=(0,), pool="thread"))
    executor.submit(Job(function=raise_noting, args=("error",), pool="thread", retry_attempts=1, retry_delay=0.01))
    wait_for(lambda: all(threads_of(f"freed {what}") for what in ("value", "argument", "list", "error")))
    wait_for(lambda: not executor.stats().jobs_running and not executor.stats().jobs_retrying)
    assert threads_of("str", "error_code", "retry_after")
    assert "executor-supervisor" not in {thread for _, thread in seen}, seen


def test_what_nobody_asks_for_is_never_unpickled(make_executor: MakeExecutor) -> None:
    """Of a result or an exception of a process that nobody asks for, no code runs here, also where it is retried."""
    executor = make_executor(2)
    executor.submit(Job(function=return_noting, args=("value",), pool="process"))
    policy = RetryPolicy(retry_attempts=1, retry_delay=0.0)
    failed = Job(function=raise_noting, args=("error",), pool="process", retry=policy)
    executor.submit(failed)
    executor.shutdown()
    assert (failed.error_code, failed.error_message, len(failed.attempts)) == ("SLOW_ERROR", "NotingError: slow", 2)
    assert seen == []


@pytest.mark.parametrize("awaits", [False, True])
def test_a_value_is_unpickled_once_by_whoever_asks_first(make_executor: MakeExecutor, awaits: bool) -> None:
    """The thread that asks for a result unpickles it; all others get the same object."""
    executor = make_executor(2)
    future = executor.submit(Job(function=return_noting, args=("value",), pool="process"))
    wait_for(future.done)
    assert seen == []
    with ThreadPoolExecutor(1, thread_name_prefix="asker") as asker:
        first = asker.submit(lambda: asyncio.run(_awaited(future)) if awaits else future.result()).result()
    assert first.name == "value"
    assert future.result() is first
    assert future.exception() is None
    assert threads_of("unpickled value") == ["asker_0"]


async def _awaited(future: JobFuture) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)


def test_an_exception_is_unpickled_once_by_whoever_asks_first(make_executor: MakeExecutor) -> None:
    """Each that asks for a failed job's error gets the same exception."""
    executor = make_executor(1)
    future = executor.submit(Job(function=raise_noting, args=("error",), pool="process", retry_attempts=0))
    error = future.exception(timeout=PATIENCE)
    assert future.exception() is error
    with pytest.raises(slow_code.NotingError) as raised:
        future.result()
    assert raised.value is error


def test_a_value_that_is_slow_to_unpickle_delays_its_reader_alone(make_executor: MakeExecutor) -> None:
    """While a value is unpickled, its job has completed, limits hold, and other results are read."""
    executor = make_executor(3)
    slow = executor.submit(Job(function=return_gated, pool="process"))
    reader = threading.Thread(target=slow.result)
    reader.start()
    try:
        wait_for(lambda: threads_of("waits"))
        assert slow.job.status is JobStatus.COMPLETED
        limited = Job(function=time.sleep, args=(60,), pool="process", max_runtime=0.3, retry_attempts=0)
        with pytest.raises(JobTimeoutError):
            executor.submit(limited).result(timeout=PATIENCE)
        assert executor.submit(Job(function=return_noting, args=("quick",), pool="process")).result().name == "quick"
        assert reader.is_alive()
    finally:
        gate.set()
        reader.join()


def test_a_result_that_cannot_be_loaded_raises_where_it_is_asked_for(
    make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose result cannot be unpickled here is COMPLETED; each that asks for it gets the same error."""
    ends: list[JobStatus] = []
    executor = make_executor(1, observers=(lambda transition: ends.append(transition.status),))
    future = executor.submit(Job(job_id="there", function=return_only_there, pool="process"))
    for _ in range(2):
        with pytest.raises(
            JobSerializationError, match="the result cannot be unpickled: LookupError: it is only there"
        ):
            future.result(timeout=PATIENCE)
    assert isinstance(future.exception(), JobSerializationError)
    assert ends == [JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("job there: the result cannot be unpickled")
    (result,) = executor.options(pool="process").map(return_only_there_for, [1])
    assert (result.status, result.value, result.error_code) == (JobStatus.COMPLETED, None, "SERIALIZATION_ERROR")


NIGHTLY = [pytest.param(method, marks=pytest.mark.nightly) for method in ("error_code", "__reduce__", "__setstate__")]


@pytest.mark.parametrize("method", ["__str__", *NIGHTLY])
def test_an_error_that_hangs_ends_at_the_limit_of_its_attempt(make_executor: MakeExecutor, method: str) -> None:
    """An exception whose own code never returns runs into max_runtime in its worker, and harms no other job."""
    executor = make_executor(2)
    hanging = executor.submit(
        Job(function=raise_hanging, args=(method,), pool="process", max_runtime=0.5, retry_attempts=0)
    )
    assert executor.run(Job(function=add, args=(1,), pool="process")) == 2
    with pytest.raises(JobTimeoutError, match=r"max_runtime=0\.5"):
        hanging.result(timeout=PATIENCE)
    assert executor.run(Job(function=add, args=(2,), pool="process")) == 3


def test_a_rule_names_a_class_that_this_process_cannot_import(make_executor: MakeExecutor) -> None:
    """A rule for a base class applies by its name; the exception itself cannot be loaded, and its text is known."""
    rule = RetryRule(codes=(f"{OF_WORKER}.BusyError",), retry_delay=0.0)
    failing = RetryRule(codes=("*",), action="fail")
    executor = make_executor(1)
    job = Job(function=raise_of_worker, pool="process", retry=RetryPolicy(retry_attempts=1, rules=(rule, failing)))
    error = executor.submit(job).exception(timeout=PATIENCE)
    assert OF_WORKER not in sys.modules
    assert [attempt.error_message for attempt in job.attempts] == ["PageError: page 13"] * 2
    assert isinstance(error, JobSerializationError)
    assert "it was PageError: page 13" in str(error)


def test_results_that_nobody_asks_for_hold_no_descriptors(make_executor: MakeExecutor) -> None:
    """The memory files of large results that are dropped unread are closed."""
    executor = make_executor(1)
    executor.run(Job(function=large, args=(0,), pool="process"))
    before = open_descriptors()
    for number in range(20):
        executor.submit(Job(function=large, args=(number,), pool="process"))
    wait_for(lambda: executor.stats().jobs_completed == 21)
    wait_for(lambda: open_descriptors().total() <= before.total())


def test_many_large_results_that_wait_hold_few_descriptors(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a limit large results wait in memory instead of in files, so that the program has descriptors left."""
    executor = make_executor(1)
    executor.run(Job(function=large, args=(0,), pool="process"))
    before = open_descriptors()
    monkeypatch.setattr(values, "MAX_OPEN_FILES", 4)
    futures = [executor.submit(Job(function=large, args=(number,), pool="process")) for number in range(20)]
    wait_for(lambda: all(future.done() for future in futures))
    assert open_descriptors().total() <= before.total() + 5
    assert [future.result()[0] for future in futures] == list(range(20))


def test_observers_hear_of_values_in_order(make_executor: MakeExecutor) -> None:
    """Observers hear of each state of a job once and in order."""
    heard: list[tuple[str, JobStatus]] = []

    def observe(transition: Transition) -> None:
        heard.append((transition.job.job_id, transition.status))

    executor = make_executor(2, observers=(observe,))
    jobs = [Job(job_id=f"job {n}", function=return_noting, args=(str(n),), pool="process") for n in range(20)]
    futures = [executor.submit(job) for job in jobs]
    assert [future.result(timeout=PATIENCE).name for future in futures] == [str(n) for n in range(20)]
    executor.shutdown()
    for job in jobs:
        states = [status for job_id, status in heard if job_id == job.job_id]
        assert states == [JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, ("text", b"bytes"), ("log", {"level": 20})])
def test_plain_data_is_loaded(value: object) -> None:
    """What a supervisor reads of a message is data of Python's own types."""
    assert values.load_plain(pickle.dumps(value, 5) + b"rest") == (value, b"rest")


@pytest.mark.parametrize("value", [ValueError("x"), Noting, ["in a list", Noting("x")], JobStatus.RUNNING])
def test_what_refers_to_code_is_not_loaded(value: object) -> None:
    """A pickle that names a class is refused before any code of it runs."""
    with pytest.raises(pickle.UnpicklingError, match="it refers to"):
        values.load_plain(pickle.dumps(value, 5))
    assert not threads_of("unpickled x")
