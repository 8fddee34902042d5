"""Times in the far future are handled like any other, whether a caller, a policy or a server gives them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import Settings
from executor_adapter.job.retry import MAX_RETRY_AFTER_SECONDS
from executor_adapter.job.validation import ToolLimit
from tests.api_server import serving
from tests.contract import functions
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.waiting import PATIENCE, wait_for

DAY = 86_400.0


@pytest.fixture(params=["thread", pytest.param("process", marks=pytest.mark.nightly)])
def pool(request: pytest.FixtureRequest) -> str:
    """The pool of the jobs: times are the supervisor's, whatever runs a job."""
    return str(request.param)


def ask(url: str) -> None:
    httpx.get(url, timeout=PATIENCE).raise_for_status()


def let_the_loop_sleep(executor: JobExecutor, make_job: MakeJob) -> None:
    """Run a job during which the supervisor only waits for the next timer."""
    assert executor.submit(make_job(time.sleep, 0.1, max_runtime=None)).exception(timeout=PATIENCE) is None


@pytest.mark.parametrize("seconds", [60 * DAY, 1e300])
@pytest.mark.parametrize("limit", ["max_runtime", "deadline", "queue_timeout", "stall_timeout"])
def test_a_limit_may_be_months_off(executor: JobExecutor, make_job: MakeJob, limit: str, seconds: float) -> None:
    """Time limits of months are accepted and do not fire early."""
    fields: dict[str, Any] = {"max_runtime": None} | {limit: seconds}
    assert executor.submit(make_job(functions.add, 1, **fields)).result(timeout=PATIENCE) == 2
    assert executor.submit(make_job(time.sleep, 0.1, **fields)).exception(timeout=PATIENCE) is None
    assert executor.submit(make_job(functions.add, 2)).result(timeout=PATIENCE) == 3


@pytest.mark.parametrize("seconds", [60 * DAY, 1e300])
def test_a_retry_may_be_months_off(executor: JobExecutor, make_job: MakeJob, tmp_path: Path, seconds: float) -> None:
    """A retry delay of months is accepted."""
    policy = RetryPolicy(retry_delay=seconds, max_delay=seconds)
    waiting = executor.submit(
        make_job(functions.fail_until, str(tmp_path / "calls"), 9, retry=policy, max_runtime=None)
    )
    wait_for(lambda: waiting.job.status is JobStatus.RETRYING)
    let_the_loop_sleep(executor, make_job)
    assert waiting.job.retry_at is not None
    assert waiting.job.retry_at > datetime.now(UTC) + timedelta(days=50)


@pytest.mark.parametrize("asked", ["3024000", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_server_can_ask_for_more_than_a_day(executor: JobExecutor, make_job: MakeJob, asked: str) -> None:
    """A server's Retry-After counts for at most a day."""
    with serving(lambda path, body: (429, {"Retry-After": asked}, b"no")) as (url, _):
        waiting = executor.submit(make_job(ask, url, max_runtime=None))
        wait_for(lambda: waiting.job.status is JobStatus.RETRYING)
    let_the_loop_sleep(executor, make_job)
    assert waiting.job.retry_at is not None
    assert waiting.job.retry_at <= datetime.now(UTC) + timedelta(seconds=MAX_RETRY_AFTER_SECONDS)
    assert waiting.job.retry_at > datetime.now(UTC) + timedelta(seconds=MAX_RETRY_AFTER_SECONDS - 3600)


def test_a_tool_may_start_a_job_in_months(make_executor: MakeExecutor, make_job: MakeJob) -> None:
    """A tool's rate limit may delay a start by months."""
    executor = make_executor(2, tool_limits={"rare": ToolLimit(rate=1e-7)})
    first, second = (executor.submit(make_job(functions.add, n, tool_name="rare", max_runtime=None)) for n in range(2))
    assert first.result(timeout=PATIENCE) == 1
    let_the_loop_sleep(executor, make_job)
    assert second.job.status is JobStatus.PENDING


def test_a_grace_may_be_longer_than_a_lifetime(make_job: MakeJob) -> None:
    """A kill grace of any length is only a maximum: a job that ends when asked takes none of it."""
    with JobExecutor(2, config=Settings.model_validate({"executor": {"kill_grace": 1e12}})) as executor:
        stuck = executor.submit(make_job(time.sleep, 30, max_runtime=0.2, retry_attempts=0))
        assert isinstance(stuck.exception(timeout=PATIENCE), TimeoutError)
        let_the_loop_sleep(executor, make_job)


def test_a_caller_may_wait_for_ever(executor: JobExecutor, make_job: MakeJob) -> None:
    """Timeouts longer than the system supports are accepted where a caller waits."""
    assert executor.submit(make_job(functions.add, 1)).result(timeout=PATIENCE) == 2
    executor.submit(Job(function=time.sleep, args=(0.1,)))
    executor.shutdown(timeout=1e12)
    assert executor.stats().jobs_cancelled == 0
