"""Sends the alerts of a HealthMonitor as Prefect events, which automations can react to.

    executor-adapter.health.stuck-job             a job has been running for longer than `stuck_after`
    executor-adapter.health.near-limit            a job has used most of its max_runtime or deadline (`near_limit`)
    executor-adapter.health.high-failure-rate     too many of the jobs that ended within the window failed
    executor-adapter.health.low-memory            memory is so short that no further attempt starts while one runs

    with HealthMonitor(executor, on_alert=[emit_alert]): ...

The resource is the job that is stuck or near its limit, `executor-adapter.job.ID`, or for other alerts the program,
`executor-adapter.program.HOST.PID`. The payload has the message, the value and the limit.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime

from prefect.events import emit_event

from executor_adapter.monitoring import Alert

PREFIX = "executor-adapter.health."


def emit_alert(alert: Alert) -> None:
    """Send the alert to the Prefect server as an event. Returns before the server has got it."""
    emit_event(
        event=f"{PREFIX}{alert.kind}",
        resource=_resource(alert),
        occurred=datetime.fromtimestamp(alert.at, UTC),
        payload={"message": alert.message, "value": alert.value, "limit": alert.limit},
    )


def _resource(alert: Alert) -> dict[str, str]:
    if alert.job is None:
        program = f"{socket.gethostname()}.{os.getpid()}"
        return {"prefect.resource.id": f"executor-adapter.program.{program}", "prefect.resource.name": program}
    job = alert.job
    labels = {"prefect.resource.id": f"executor-adapter.job.{job.job_id}", "executor-adapter.job-type": job.job_type}
    return labels if job.tool_name is None else labels | {"executor-adapter.tool": job.tool_name}
