"""Failures, retries and other transitions of jobs reach the Prefect server as events."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.prefect import job_events, run_jobs
from tests.prefect.conftest import Api
from tests.waiting import wait_for


def fail_by(code: str) -> None:
    if code == "crash":
        os._exit(3)
    if code == "late":
        time.sleep(60)
    if code == "broken":
        raise ValueError("broken")


def job(what: str, **fields: Any) -> Job:
    pool = "process" if what in ("crash", "late") else "thread"
    policy = RetryPolicy(retry_attempts=fields.pop("retries", 0), retry_delay=0.01, crash_attempts=1)
    return Job(job_id=f"{what}-{time.time_ns()}", function=fail_by, args=(what,), pool=pool, retry=policy, **fields)


def events_about(api: Api, job_id: str) -> list[dict[str, Any]]:
    """Return the server's events about a job, the oldest first."""
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    resource = {"id": [f"executor-adapter.job.{job_id}"]}
    body = {"filter": {"occurred": {"since": since}, "resource": resource}, "limit": 50}
    found = api.post("/events/filter", body)["events"]
    return sorted(found, key=lambda event: str(event["occurred"]))


def test_failures_retries_crashes_and_quarantine_are_events(api: Api) -> None:
    """Failures, retries, crashes and quarantine are events with the job as resource, related to the flow run."""
    jobs = [job("broken", retries=1), job("crash", retries=3), job("late", max_runtime=0.5), job("well")]

    @flow
    def run() -> None:
        with JobExecutor(max_workers=2) as executor, job_events(executor=executor):
            run_jobs(jobs, executor=executor)

    flow_run_id = run(return_state=True).state_details.flow_run_id
    expected = {
        jobs[0].job_id: ["retried", "failed"],
        jobs[1].job_id: ["retried", "crashed", "quarantined"],
        jobs[2].job_id: ["timed-out"],
    }
    for job_id, kinds in expected.items():
        names = [f"executor-adapter.job.{kind}" for kind in kinds]
        wait_for(lambda names=names, job_id=job_id: [e["event"] for e in events_about(api, job_id)] == names)
    assert events_about(api, jobs[3].job_id) == []  # Completed jobs have none.

    last = events_about(api, jobs[0].job_id)[-1]
    assert last["resource"]["executor-adapter.error-code"] == "EXECUTION_ERROR"
    assert last["payload"]["attempts"] == 2
    related = [(each["prefect.resource.role"], each["prefect.resource.id"]) for each in last["related"]]
    assert ("flow-run", f"prefect.flow-run.{flow_run_id}") in related
