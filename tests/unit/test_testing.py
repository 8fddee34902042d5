"""executor_adapter.testing: inline jobs, a clock to move, retries without delay."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from executor_adapter import Job, JobFuture, JobStatus, Progress, RetryPolicy, current_job
from executor_adapter.exceptions import ConfigurationError, DataCollectionException, JobCancelledError, JobTimeoutError
from executor_adapter.executor.calling import result_of
from executor_adapter.testing import FakeClock, InlineExecutor, set_testing


class Flaky:
    """Fails until it has been called `succeed_at` times."""

    def __init__(self, succeed_at: int) -> None:
        self.calls = 0
        self._succeed_at = succeed_at

    def __call__(self) -> int:
        self.calls += 1
        if self.calls < self._succeed_at:
            raise ConnectionError(f"call {self.calls}")
        return self.calls


def test_a_job_runs_before_submit_returns_in_the_caller_s_thread() -> None:
    """InlineExecutor runs a job in the caller's thread before `submit` returns."""
    with InlineExecutor() as executor:
        future = executor.submit(Job(function=threading.get_ident))
        assert future.done()
        assert future.result() == threading.get_ident()


def test_coroutines_and_job_contexts_work_inline() -> None:
    """Coroutine functions and `current_job` work in InlineExecutor."""

    async def attempt() -> int:
        await asyncio.sleep(0)
        return current_job().attempt

    with InlineExecutor() as executor:
        assert executor.run(Job(function=attempt)) == 1


def test_a_job_that_is_retried_for_ever_keeps_few_attempts() -> None:
    """Of more than a hundred attempts the first one and the newest are kept; its result counts them all."""
    with InlineExecutor() as executor:
        future = executor.submit(Job(function=Flaky(succeed_at=250), retry_attempts=1000, retry_delay=0.0))
    assert [attempt.number for attempt in future.job.attempts] == [1, *range(152, 251)]
    result = result_of(future)
    assert (result.value, result.attempts) == (250, 250)


def test_jobs_run_inline_with_a_store(tmp_path: Path) -> None:
    """A store, which asks the supervisor for a turn, changes nothing: a job has ended when `submit` returns."""
    with InlineExecutor(store=f"sqlite:///{tmp_path / 'jobs.db'}") as executor:
        assert executor.submit(Job(function="math:sqrt", args=(4.0,))).done()


async def report_attempt() -> int:
    current_job().progress(1, 2)
    await asyncio.sleep(0)
    return current_job().attempt


def test_a_coroutine_runs_inline_in_an_async_test() -> None:
    """A coroutine function runs before `submit` returns, in its job's context, also where an event loop runs here."""

    async def submit() -> JobFuture[int]:
        with InlineExecutor() as executor:
            future = executor.submit(Job(function=report_attempt))
            assert future.done()
            assert await future == 1
            return future

    assert asyncio.run(submit()).job.progress == Progress(1, 2)


class InlineWithHook(InlineExecutor):
    async def pre_execution_hook(self, job: Job) -> None: ...


def test_hooks_are_refused_inline() -> None:
    """An InlineExecutor with hooks is refused, since they run on another thread, and says what to use."""
    with pytest.raises(ConfigurationError, match=r"InlineWithHook has hooks.*JobExecutor"):
        InlineWithHook()


def test_a_retry_comes_when_the_clock_is_moved_so_far() -> None:
    """A retry runs once the clock has passed its delay."""
    policy = RetryPolicy(retry_delay=60.0, jitter=0.0)
    with InlineExecutor() as executor:
        future = executor.submit(Job(function=Flaky(3), retry=policy))
        executor.clock.advance(59)
        assert future.job.status is JobStatus.RETRYING
        executor.clock.advance(1)
        assert future.job.attempt == 2
        executor.clock.advance(120)
        assert future.result(timeout=0) == 3


def test_a_function_that_moves_the_clock_past_its_limit_is_timed_out() -> None:
    """A function that moves the clock past max_runtime times out."""
    with InlineExecutor() as executor:
        job = Job(function=executor.clock.advance, args=(10.0,), max_runtime=5.0, retry_attempts=0)
        with pytest.raises(JobTimeoutError, match=r"max_runtime=5\.0"):
            executor.run(job)


def test_a_waiting_retry_is_cancelled_inline() -> None:
    """A job that waits for a retry can be cancelled in InlineExecutor."""
    with InlineExecutor() as executor:
        future = executor.submit(Job(function=Flaky(9)))
        assert future.cancel()
        with pytest.raises(JobCancelledError):
            future.result(timeout=0)


def test_leaving_with_waiting_jobs_says_what_they_wait_for() -> None:
    """Leaving an InlineExecutor whose jobs wait for its clock raises instead of waiting forever."""
    with pytest.raises(RuntimeError, match="wait for its clock"), InlineExecutor() as executor:
        executor.submit(Job(function=Flaky(2)))
    executor.clock.advance(120)
    assert executor.is_closed


def test_set_testing_limits_attempts_and_delays() -> None:
    """`set_testing` limits attempts and removes delays, and its exit restores both."""
    flaky = Flaky(9)
    with InlineExecutor() as executor:
        with set_testing(attempts=2), pytest.raises(ConnectionError, match="call 2"):
            executor.submit(Job(function=flaky, retry_delay=60.0)).result(timeout=0)
        later = executor.submit(Job(function=flaky, retry_delay=60.0))
        assert later.job.status is JobStatus.RETRYING
        later.cancel()


def test_set_testing_removes_the_pause_that_a_server_asks_for() -> None:
    """`set_testing` removes a Retry-After too, from the retry and from the tool of the job."""
    errors = [DataCollectionException("slow down", error_code="RATE_LIMITED", retry_after=8.0)]

    def ask() -> str:
        if errors:
            raise errors.pop()
        return "answered"

    with InlineExecutor() as executor, set_testing(attempts=2):
        future = executor.submit(Job(function=ask, tool_name="api"))
        assert future.result(timeout=0) == "answered"


def test_set_testing_does_not_add_attempts() -> None:
    """`set_testing` never gives a job more attempts than its policy."""
    with set_testing(attempts=5):
        assert Job(function=print, retry_attempts=1).policy.retry_attempts == 1


def test_impossible_settings_are_refused() -> None:
    """`set_testing` and FakeClock refuse impossible values."""
    with pytest.raises(ValueError, match="attempts=0 runs no job"):
        set_testing(attempts=0)
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock().advance(-1)
