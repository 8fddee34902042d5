"""Driven jobs while their worker processes start: they are not running before a worker is ready."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job.pool_names import START_METHOD, StartMethod
from executor_adapter.supervision.driver import JobDriver
from tests.contract import functions
from tests.waiting import PATIENCE, wait_for

METHODS: list[StartMethod] = ["spawn"] if START_METHOD == "spawn" else [START_METHOD, "spawn"]


@pytest.fixture(params=METHODS)
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobExecutor]:
    """An executor of one worker process that starts when the file `go` exists."""
    config = Settings(executor=ExecutorSettings(start_method=request.param))
    with JobExecutor(1, config=config, initializer=functions.start_slowly, initargs=(str(tmp_path),)) as made:
        yield made
        (tmp_path / "go").touch()


@contextlib.contextmanager
def driven(executor: JobExecutor) -> Iterator[JobDriver]:
    """A driven job that ends with the block at the latest: the executor would wait for it."""
    driver = executor.drive(Job(function=int, pool="process"))
    try:
        yield driver
    finally:
        driver.fail(JobCancelledError("the test is over"))


def test_a_driven_job_is_pending_while_its_worker_starts(executor: JobExecutor, tmp_path: Path) -> None:
    """A driven job has its slot, and is RUNNING, only when its worker can run the function."""
    with driven(executor) as driver:
        slot = driver.acquire()
        wait_for((tmp_path / "starting").exists)
        assert not slot.done()
        assert driver.job.status is JobStatus.PENDING
        (tmp_path / "go").touch()
        slot.result(timeout=PATIENCE)
        assert driver.job.status is JobStatus.RUNNING
        assert driver.attempt().result(timeout=PATIENCE) == 0


def test_a_job_cancelled_while_its_worker_starts_leaves_the_slot(executor: JobExecutor, tmp_path: Path) -> None:
    """A driven job that is cancelled while its worker starts never runs, and the next job has its slot and worker."""
    with driven(executor) as driver:
        slot = driver.acquire()
        wait_for((tmp_path / "starting").exists)
        assert driver.cancel()
        assert isinstance(slot.exception(timeout=PATIENCE), JobCancelledError)
    (tmp_path / "go").touch()
    assert executor.submit(Job(function=int, args=("3",), pool="process")).result(timeout=PATIENCE) == 3
    assert driver.job.status is JobStatus.CANCELLED
    assert driver.job.started_at is None


def test_a_slot_that_is_not_used_leaves_its_worker_to_others(executor: JobExecutor, tmp_path: Path) -> None:
    """A driven job that completes without an attempt, as with a cached result, leaves slot and worker to the next."""
    (tmp_path / "go").touch()
    with driven(executor) as driver:
        driver.acquire().result(timeout=PATIENCE)
        driver.complete("cached")
    assert executor.submit(Job(function=int, args=("3",), pool="process")).result(timeout=PATIENCE) == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_driven_job_whose_workers_cannot_start_fails(method: StartMethod) -> None:
    """A driven job fails as crashed, with the reason, if no worker gets ready."""
    config = Settings(executor=ExecutorSettings(start_method=method))
    with JobExecutor(1, config=config, initializer=functions.fail_with_value_error, initargs=("no",)) as executor:
        with driven(executor) as driver:
            driver.acquire().result(timeout=PATIENCE)
            error = driver.attempt().exception(timeout=PATIENCE)
        assert "before it was ready" in str(error)
