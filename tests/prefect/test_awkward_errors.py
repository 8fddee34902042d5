"""An error that breaks when it is displayed still fails its task run, and the flow ends."""

from __future__ import annotations

from typing import Any

import pytest
from prefect import flow, task

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, job_task, run_jobs
from tests.contract.awkward import AWKWARD, NO_EXCEPTIONS, raise_awkward, raise_no_exception
from tests.waiting import PATIENCE

KINDS = [
    "SaysNothingError",
    "ShowsNothingError",
    "HasNoTimeError",
    "HasNoAttributesError",
    "HasEndlessCausesError",
    "many that say nothing",
]


@pytest.mark.parametrize("pool", ["thread", pytest.param("process", marks=pytest.mark.nightly)])
def test_a_job_task_with_an_awkward_error_fails(prefect_api: str, pool: str) -> None:
    """Every job task ends as Failed, and the flow ends, in a thread and in a process."""
    awkward: Any = job_task(pool=pool, retry_attempts=1, retry_delay=0, max_runtime=PATIENCE)(raise_awkward)
    leaving: Any = job_task(pool=pool, retry_attempts=0, max_runtime=PATIENCE)(raise_no_exception)

    @flow
    def run() -> list[str]:
        futures = [awkward.submit(kind) for kind in KINDS] + [leaving.submit(kind) for kind in NO_EXCEPTIONS]
        for future in futures:
            future.wait(PATIENCE)
        return [future.state.name for future in futures]

    with JobExecutor(2):
        assert set(run()) == {"Failed"}


def test_a_plain_task_with_an_awkward_error_fails(prefect_api: str) -> None:
    """Every plain task under JobTaskRunner ends as Failed, and the flow ends."""

    @flow(task_runner=JobTaskRunner(max_workers=2))
    def run() -> list[str]:
        futures = [task(raise_awkward).submit(kind) for kind in KINDS]
        for future in futures:
            future.wait(PATIENCE)
        return [future.state.name for future in futures]

    assert run() == ["Failed"] * len(KINDS)


@pytest.mark.parametrize("pool", ["thread", pytest.param("process", marks=pytest.mark.nightly)])
def test_run_jobs_with_awkward_errors_ends(prefect_api: str, pool: str) -> None:
    """Every job of run_jobs gives a failed result."""

    @flow
    def run() -> list[str]:
        jobs = [Job(function=raise_awkward, args=(kind,), pool=pool, retry_attempts=0) for kind in sorted(AWKWARD)]
        return [str(result.status) for result in run_jobs(jobs)]

    assert run() == ["failed"] * len(AWKWARD)
