"""Tests users' code that is slow wherever Python calls it: none of it runs on the thread that enforces all limits."""

from __future__ import annotations

import copyreg
import pickle
import time

import pytest

from executor_adapter import Job, JobStatus, Transition
from executor_adapter.exceptions import JobTimeoutError
from executor_adapter.pools.transport.reports import refers_to_code
from tests.contract.conftest import MakeExecutor
from tests.contract.slow_code import Slow, accept, raise_slow, return_slow, seen, threads_of
from tests.waiting import PATIENCE, wait_for


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_no_code_of_users_runs_on_the_supervisor_s_thread(make_executor: MakeExecutor, pool: str) -> None:
    """Values, arguments and errors that nobody else holds are unpickled, read and freed on other threads."""
    executor = make_executor(2)
    executor.submit(Job(function=return_slow, args=("value",), pool=pool))
    executor.submit(Job(function=accept, args=(Slow("argument"),), pool=pool))
    executor.submit(Job(function=raise_slow, args=("error",), pool=pool, retry_attempts=1, retry_delay=0.01))
    expected = ["freed value", "freed argument", "freed error"]
    wait_for(lambda: all([what for what, _ in seen].count(one) >= 1 for one in expected))
    wait_for(lambda: not executor.stats().jobs_running and not executor.stats().jobs_retrying)
    assert threads_of("str", "error_code", "retry_after")
    assert "executor-supervisor" not in {thread for _, thread in seen}, seen


def test_a_value_that_is_slow_to_unpickle_delays_no_limit(make_executor: MakeExecutor) -> None:
    """A value that is unpickled slowly delays neither the limits of other jobs nor other values."""
    executor = make_executor(3)
    executor.run(Job(function=accept, args=(1,), pool="process"))
    slow = executor.submit(Job(function=return_slow, args=("slow", 2.0), pool="process", max_runtime=30.0))
    wait_for(lambda: threads_of("unpickled slow"))
    limited = executor.submit(Job(function=time.sleep, args=(60,), pool="process", max_runtime=0.3, retry_attempts=0))
    quick = executor.submit(Job(function=return_slow, args=("quick",), pool="process", max_runtime=30.0))
    with pytest.raises(JobTimeoutError):
        limited.result(timeout=PATIENCE)
    assert quick.result(timeout=PATIENCE).name == "quick"
    assert not slow.done(), "it was not slow enough: this proves nothing"
    assert slow.result(timeout=PATIENCE).name == "slow"


def test_a_value_that_never_unpickles_ends_at_the_limit(make_executor: MakeExecutor) -> None:
    """A value that is not unpickled within its attempt's limit fails the job, and others follow."""
    executor = make_executor(1)
    executor.run(Job(function=return_slow, args=("warm",), pool="process"))  # Its worker has imported this module.
    stuck = executor.submit(
        Job(function=return_slow, args=("stuck", 60.0), pool="process", max_runtime=2.0, retry_attempts=0)
    )
    with pytest.raises(JobTimeoutError):
        stuck.result(timeout=PATIENCE)
    assert executor.stats().abandoned_threads == 1
    cancelled = executor.submit(Job(function=return_slow, args=("stuck", 60.0), pool="process"))
    wait_for(lambda: [what for what, _ in seen].count("unpickled stuck") >= 2)
    cancelled.cancel()
    wait_for(cancelled.done)
    assert cancelled.job.status is JobStatus.CANCELLED
    assert executor.run(Job(function=return_slow, args=("next",), pool="process")).name == "next"


def test_observers_hear_of_values_in_order(make_executor: MakeExecutor) -> None:
    """A job is COMPLETED only when its value was unpickled, and its observers hear of each state once and in order."""
    heard: list[tuple[str, JobStatus]] = []

    def observe(transition: Transition) -> None:
        heard.append((transition.job.job_id, transition.status))

    executor = make_executor(2, observers=(observe,))
    jobs = [Job(job_id=f"job {n}", function=return_slow, args=(str(n),), pool="process") for n in range(20)]
    futures = [executor.submit(job) for job in jobs]
    assert [future.result(timeout=PATIENCE).name for future in futures] == [str(n) for n in range(20)]
    executor.shutdown()
    for job in jobs:
        states = [status for job_id, status in heard if job_id == job.job_id]
        assert states == [JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED]


@pytest.mark.parametrize(
    "value",
    [ValueError, ["builtins", "ValueError", ValueError], [bytes(70_000), ValueError], [*map(str, range(300)), Slow]],
)
def test_a_pickle_that_refers_to_code_is_recognised(value: object) -> None:
    """A class is found in a pickle, whatever opcode its names come from."""
    assert refers_to_code(pickle.dumps(value, 5))


@pytest.mark.parametrize("code", [7, 700, 70_000])
def test_a_pickle_with_an_extension_code_is_recognised(code: int) -> None:
    """A class that `copyreg` knows by a number has no name in the pickle."""
    copyreg.add_extension(Slow.__module__, "Slow", code)
    try:
        pickled = pickle.dumps(Slow, 5)
        assert b"Slow" not in pickled
        assert refers_to_code(pickled)
    finally:
        copyreg.remove_extension(Slow.__module__, "Slow", code)
        copyreg.clear_extension_cache()
    assert not refers_to_code(pickled)


def test_plain_data_is_rarely_taken_for_code() -> None:
    """Numbers and texts are plain, though they contain the byte that stands for code."""
    pickles = [pickle.dumps([number * 0.37, "\u0093", number], 5) for number in range(10_000)]
    assert sum(b"\x93" in pickled for pickled in pickles) > 5_000
    assert sum(map(refers_to_code, pickles)) < 100
