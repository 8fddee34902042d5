"""Tests of errors that fail when they are read: such an error ends its own job and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import JobError, JobTimeoutError
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.transport.envelope import Ending, Outcome
from executor_adapter.supervision.messages import JobScope
from tests.contract import awkward, functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.contract.test_supervisor_machine import SimulatedExecutor, SimulatedPool, work
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for


def test_an_awkward_error_fails_its_own_job_only(executor: JobExecutor, make_job: MakeJob) -> None:
    """An error that fails when it is read fails its own job; other jobs go on."""
    kinds = list(awkward.AWKWARD)
    futures = [executor.submit(make_job(awkward.raise_awkward, kind, retry_attempts=0)) for kind in kinds]
    neighbour = executor.submit(make_job(functions.add, 1))
    ended = {kind: future.exception(timeout=PATIENCE) for kind, future in zip(kinds, futures, strict=True)}
    assert {kind for kind, error in ended.items() if not isinstance(error, Exception)} == set()
    assert {future.job.status for future in futures} == {JobStatus.FAILED}
    assert {type(future.job.error_code) for future in futures} == {str}
    assert {type(future.job.error_message) for future in futures} == {str}
    assert neighbour.result(timeout=PATIENCE) == 2
    assert executor.stats().workers_busy == 0


def test_an_awkward_error_is_retried(executor: JobExecutor, make_job: MakeJob) -> None:
    """An error that fails when it is read is retried as any other."""
    job = make_job(awkward.raise_awkward, "SaysNothingError", retry_attempts=1)
    assert executor.submit(job).exception(timeout=PATIENCE) is not None
    assert [attempt.error_code for attempt in job.attempts] == ["EXECUTION_ERROR"] * 2


def test_an_error_with_endless_text_counts_into_max_runtime(executor: JobExecutor, make_job: MakeJob) -> None:
    """An error whose text never ends runs into max_runtime and delays no other job."""
    endless = executor.submit(make_job(awkward.raise_what_never_says_all, max_runtime=0.5, retry_attempts=0))
    with pytest.raises(JobTimeoutError, match=r"max_runtime=0\.5"):
        endless.result(timeout=PATIENCE)
    assert executor.submit(make_job(functions.add, 1)).result(timeout=PATIENCE) == 2


@pytest.mark.parametrize("kind", awkward.NO_EXCEPTIONS)
def test_an_exit_raised_by_a_job_is_an_error_of_the_job(executor: JobExecutor, make_job: MakeJob, kind: str) -> None:
    """SystemExit and its like fail the job with an error that names them, in every pool."""
    future = executor.submit(make_job(awkward.raise_no_exception, kind, retry_attempts=0))
    error = future.exception(timeout=PATIENCE)
    # Python itself makes a RuntimeError of what a coroutine must not raise.
    assert isinstance(error, JobError) or (type(error) is RuntimeError and kind == "StopIteration")
    assert ("sys.exit(3)" if kind == "SystemExit" else kind) in str(error)
    assert (future.job.status, future.job.error_code) == ("failed", "EXECUTION_ERROR")
    with pytest.raises(type(error)):
        asyncio.run(_awaited(future))


async def _awaited(future: Any) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(future), PATIENCE)


def test_an_exit_in_a_coroutine_s_task_ends_no_other_job(make_executor: MakeExecutor) -> None:
    """A task that a coroutine started and that raises SystemExit ends no other job."""
    executor = make_executor(2)
    neighbour = executor.submit(Job(function=asyncio.sleep, args=(0.3, "slept"), max_runtime=PATIENCE))
    wait_for(neighbour.running)
    left = executor.submit(Job(function=awkward.exit_in_a_task_of_its_own, retry_attempts=0, max_runtime=PATIENCE))
    assert "sys.exit(3)" in str(left.exception(timeout=PATIENCE))
    assert neighbour.result(timeout=PATIENCE) == "slept"


class FailingScope(JobScope):
    """A scope whose preparation fails, at the first attempt or when the function is known to be short."""

    def prepare(self, assignment: Assignment) -> None:
        raise RuntimeError("nothing around it")

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None: ...


def test_a_fault_before_an_attempt_fails_its_own_job_only(executor: JobExecutor, make_job: MakeJob) -> None:
    """A scope that fails before an attempt fails its job, and jobs queued behind it run."""
    assert len([executor.run(make_job(functions.add, number)) for number in range(20)]) == 20
    jobs = [make_job(functions.add, number) for number in range(200)]
    futures = [executor.submit(job, scope=FailingScope() if n % 10 == 5 else None) for n, job in enumerate(jobs)]
    errors = [future.exception(timeout=PATIENCE) for future in futures]
    assert [n for n, error in enumerate(errors) if error is not None] == list(range(5, 200, 10))
    assert "nothing around it" in str(errors[5])


def test_a_fault_in_deciding_fails_the_job(caplog: pytest.LogCaptureFixture) -> None:
    """Facts of an error that make no sense fail the job while its retry is decided."""
    executor = SimulatedExecutor(1)
    future = executor.submit(Job(function=work, pool="thread", retry=RetryPolicy(retry_attempts=3)))
    (pool,) = (pool for pool in supervisor_of(executor).pools.made.values() if isinstance(pool, SimulatedPool))
    supervisor_of(executor).call_soon(pool.end, pool.workers[0], Outcome(Ending.RAISED, ErrorFacts("X", None, "x")))  # type: ignore[arg-type]
    assert isinstance(future.exception(timeout=0), JobError)
    assert future.job.status is JobStatus.FAILED
    assert "cannot decide what follows an attempt: the job fails" in caplog.text


class HookedExecutor(JobExecutor):
    async def pre_execution_hook(self, job: Job) -> None: ...


def test_awkward_errors_fail_their_jobs_under_hooks(make_job: MakeJob) -> None:
    """An error that fails when it is read fails its job in an executor with hooks too."""
    kinds = ["SaysNothingError", "HasNoTimeError", "HasNoAttributesError"]
    with HookedExecutor(2, config=Settings()) as executor:
        awkward_ones = [executor.submit(make_job(awkward.raise_awkward, kind, retry_attempts=0)) for kind in kinds]
        exits = [
            executor.submit(make_job(awkward.raise_no_exception, kind, retry_attempts=0))
            for kind in awkward.NO_EXCEPTIONS
        ]
        assert all(isinstance(future.exception(timeout=PATIENCE), Exception) for future in awkward_ones + exits)
        assert {future.job.status for future in awkward_ones + exits} == {JobStatus.FAILED}
