"""Sends Prefect events about jobs, which automations can react to: when they fail, retry or end, and for alerts.

    with JobExecutor() as executor, job_events(executor=executor):
        ...

    event                               when
    executor-adapter.job.failed         it failed with an error other than those below, and is not retried
    executor-adapter.job.timed-out      it exceeded a time limit, and is not retried
    executor-adapter.job.crashed        its worker died, and it is not retried
    executor-adapter.job.out-of-memory  it exceeded its memory_limit, and is not retried
    executor-adapter.job.quarantined    it has killed more workers than its policy allows
    executor-adapter.job.retried        an attempt failed, and another one follows
    executor-adapter.job.cancelled      it was cancelled

The resource is the job, `executor-adapter.job.ID`, and the flow run is a related resource.

    with HealthMonitor(executor, on_alert=[emit_alert]): ...

    event                                       when
    executor-adapter.health.stuck-job           a job has been running for longer than `stuck_after`
    executor-adapter.health.near-limit          a job has used most of its max_runtime or deadline (`near_limit`)
    executor-adapter.health.high-failure-rate   too many of the jobs that ended within the window failed
    executor-adapter.health.low-memory          memory is so short that no further attempt starts while one runs

The resource is the job that is stuck or near its limit, or for other alerts the program,
`executor-adapter.program.HOST.PID`. The payload has the message, the value and the limit.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prefect.events import emit_event

from executor_adapter.executor import JobExecutor, current_executor
from executor_adapter.job import CRASHES, JobStatus, Transition
from executor_adapter.monitoring import Alert
from executor_adapter.prefect.mirror.events import flow_run_facts
from executor_adapter.prefect.mirror.states import state_kind
from executor_adapter.prefect.reporting.background import BackgroundCalls

PREFIX = "executor-adapter.job."
KINDS = ("failed", "timed-out", "crashed", "out-of-memory", "quarantined", "retried", "cancelled")


class JobEvents:
    """An observer of `executor` that sends events; see `job_events`. Make it in the flow run, if there is one."""

    def __init__(self, executor: JobExecutor) -> None:
        self._executor = executor
        self._related: list[Any] = json.loads(f"[{flow_run_facts().related}]")
        self._calls = BackgroundCalls("job-events")

    def __call__(self, transition: Transition) -> None:
        if transition.status is JobStatus.RETRYING:
            self._put("retried", transition)
        elif transition.status.is_terminal and transition.status is not JobStatus.COMPLETED:
            code = transition.job.error_code if transition.error is not None else None
            name = state_kind(transition.status, error_code=code).name
            self._put(re.sub(r"\B[A-Z]", r"-\g<0>", name).lower(), transition)  # TimedOut is timed-out.
            if code in CRASHES and any(transition.job is job for job in self._executor.quarantined()):
                self._put("quarantined", transition)

    def _put(self, kind: str, transition: Transition) -> None:
        job, tool = transition.job, transition.job.tool_name or transition.job.job_type
        resource = {"prefect.resource.id": f"{PREFIX}{job.job_id}", "prefect.resource.name": tool}
        if job.error_code:
            resource["executor-adapter.error-code"] = job.error_code
        payload = {"job_id": job.job_id, "tool": tool, "status": transition.status, "attempts": job.attempt}
        payload |= {"error_code": job.error_code, "error_message": job.error_message, "duration": job.duration}
        event = functools.partial(emit_event, PREFIX + kind, resource, related=self._related, payload=payload)
        self._calls.put(event)

    def close(self) -> None:
        """Send the remaining events."""
        self._calls.wait()


@contextlib.contextmanager
def job_events(*, executor: JobExecutor | None = None) -> Iterator[JobEvents]:
    """Send events for the jobs that an executor, by default the current one, runs in the block.

    An automation can then trigger on `executor-adapter.job.crashed`, for example. A thread sends the events.
    """
    executor = executor or current_executor()
    events = JobEvents(executor)
    executor.add_observer(events)
    try:
        yield events
    finally:
        executor.remove_observer(events)
        events.close()


HEALTH_PREFIX = "executor-adapter.health."


def emit_alert(alert: Alert) -> None:
    """Send the alert to the Prefect server as an event. Returns before the server has got it."""
    emit_event(
        event=f"{HEALTH_PREFIX}{alert.kind}",
        resource=_resource_of(alert),
        occurred=datetime.fromtimestamp(alert.at, UTC),
        payload={"message": alert.message, "value": alert.value, "limit": alert.limit},
    )


def _resource_of(alert: Alert) -> dict[str, str]:
    if alert.job is None:
        program = f"{socket.gethostname()}.{os.getpid()}"
        return {"prefect.resource.id": f"executor-adapter.program.{program}", "prefect.resource.name": program}
    job = alert.job
    labels = {"prefect.resource.id": f"executor-adapter.job.{job.job_id}", "executor-adapter.job-type": job.job_type}
    return labels if job.tool_name is None else labels | {"executor-adapter.tool": job.tool_name}
