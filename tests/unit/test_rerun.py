"""Reruns: a new job like a finished one, with changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from executor_adapter import Job, JobStatus, RetryPolicy, RetryRule
from executor_adapter.cli.rerun import rerun_record
from executor_adapter.job import rerun
from executor_adapter.persistence.serialization import stored_call
from executor_adapter.store import JobRecord

RULES = (RetryRule(codes=("RATE_LIMITED",), retry_delay=9.0),)


def finished_job(retry: RetryPolicy | None) -> Job:
    job = Job(function=len, args=("abc",), retry_attempts=5, retry=retry)
    job.advance(JobStatus.RUNNING)
    job.advance(JobStatus.COMPLETED)
    return job


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (2, 30.0, (1.0,))),
        ({"retry_attempts": 0}, (0, 30.0, (1.0,))),
        ({"retry_delay": 4.0}, (2, 4.0, ())),
        ({"retry_attempts": 7, "retry": {"retry_attempts": 1}}, (1, 60.0, ())),
    ],
)
def test_changed_retries_of_a_rerun_change_its_policy(changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """A rerun with changed retries changes the policy, which would win otherwise; in the program and in the CLI."""
    job = finished_job(RetryPolicy(retry_attempts=2, retry_delay=30.0, delays=(1.0,), rules=RULES))
    record = JobRecord(job_id=job.job_id, status=JobStatus.COMPLETED, call=stored_call(job).call, created_at=1.0)
    call = json.loads(rerun_record(record, changes).call or "")
    for policy in (rerun(job, **changes).policy, RetryPolicy(**call["retry"])):
        assert (policy.retry_attempts, policy.retry_delay, policy.delays) == expected
        assert policy.rules == (() if "retry" in changes else RULES)


def test_without_a_policy_the_fields_of_a_rerun_count() -> None:
    """Without a policy, a rerun's fields decide its retries."""
    assert rerun(finished_job(None), retry_attempts=1).policy.retry_attempts == 1
    assert rerun(finished_job(None)).policy.retry_attempts == 5
