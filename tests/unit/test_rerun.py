"""A job that is over, made again with changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from executor_adapter import Job, JobStatus, RetryPolicy, RetryRule
from executor_adapter.cli.rerun import rerun_record
from executor_adapter.job.rerun import rerun
from executor_adapter.persistence.serialization import stored_call
from executor_adapter.store import JobRecord

RULES = (RetryRule(codes=("RATE_LIMITED",), retry_delay=9.0),)


def over(retry: RetryPolicy | None) -> Job:
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
def test_a_change_of_its_retries_is_one_of_its_policy(changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """... which would win over it; in the program that ran it, and by what a store holds of it."""
    job = over(RetryPolicy(retry_attempts=2, retry_delay=30.0, delays=(1.0,), rules=RULES))
    record = JobRecord(job_id=job.job_id, status=JobStatus.COMPLETED, call=stored_call(job).call, created_at=1.0)
    call = json.loads(rerun_record(record, changes).call or "")
    for policy in (rerun(job, **changes).policy, RetryPolicy(**call["retry"])):
        assert (policy.retry_attempts, policy.retry_delay, policy.delays) == expected
        assert policy.rules == (() if "retry" in changes else RULES)


def test_without_a_policy_of_its_own_the_fields_count() -> None:
    assert rerun(over(None), retry_attempts=1).policy.retry_attempts == 1
    assert rerun(over(None)).policy.retry_attempts == 5
