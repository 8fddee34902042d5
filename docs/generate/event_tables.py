"""The events that the package emits to a Prefect server."""

from __future__ import annotations

import importlib

import griffe
from markdown_text import code, table

from executor_adapter.monitoring import AlertKind
from executor_adapter.prefect import JobEvents, emit_alert

JOB_EVENTS = {
    "failed": "The job failed: no attempt is left, or its error code is not retried.",
    "timed-out": "The job failed: it passed a time limit.",
    "crashed": "The job failed: its worker process died.",
    "out-of-memory": "The job failed: it exceeded its `memory_limit`.",
    "quarantined": "The job crashed more workers than its policy allows; sent in addition to the above.",
    "retried": "An attempt failed, and another follows.",
    "cancelled": "The job was cancelled.",
}


def reference() -> str:
    """Both families of events, each with what its resource is."""
    jobs = importlib.import_module(JobEvents.__module__)
    if JOB_EVENTS.keys() != set(jobs.KINDS):
        raise ValueError(f"describe the events of jobs: {set(jobs.KINDS) ^ JOB_EVENTS.keys()}")
    rows = [(code(jobs.PREFIX + kind), said) for kind, said in JOB_EVENTS.items()]
    prefix = importlib.import_module(emit_alert.__module__).HEALTH_PREFIX
    members = griffe.load("executor_adapter", resolve_aliases=True)["monitoring.AlertKind"].members
    alerts = [(code(f"{prefix}{kind}"), members[kind.name].docstring.value) for kind in AlertKind]
    return "\n".join(
        (
            "## Jobs",
            "",
            "Sent by [`job_events`](prefect.md#executor_adapter.prefect.job_events).",
            "",
            table(("event", "when"), rows),
            "## Health",
            "",
            "Sent by [`emit_alert`](prefect.md#executor_adapter.prefect.emit_alert).",
            "",
            table(("event", "when"), alerts),
        )
    )
