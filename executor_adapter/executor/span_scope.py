"""Puts a job's function into the job's span, and remembers the span in which it was submitted."""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from executor_adapter.job.model import Job
from executor_adapter.monitoring.trace_scope import INSIDE
from executor_adapter.monitoring.tracing import JobTracer
from executor_adapter.pools.base import Assignment
from executor_adapter.supervision.job_scope import JobScope
from executor_adapter.supervision.worker_logs import log_message

IN_THIS_PROCESS = frozenset({"thread", "coroutine"})


def parent_of(job: Job) -> Context | None:
    """The context in which a job of a traced executor was submitted."""
    around = job.live.scope
    return around.parent if isinstance(around, SpanScope) else None


def job_tracer(tracer: Tracer) -> JobTracer:
    return JobTracer(tracer, parent_of)


class SpanScope:
    """JobScope made by whoever submits a job; around `inner`, where somebody gave others."""

    def __init__(self, tracer: JobTracer, inner: JobScope | None = None) -> None:
        self.parent = context.get_current()
        self._submitted_in = contextvars.copy_context()
        self._tracer = tracer
        self._inner = inner

    def prepare(self, assignment: Assignment) -> None:
        if self._inner is not None:
            self._inner.prepare(assignment)
        traced = self._tracer.context_of(assignment.job)
        if assignment.job.live.pool in IN_THIS_PROCESS:
            assignment.context = assignment.context or self._submitted_in.copy()
            assignment.context.run(context.attach, traced)
        elif assignment.scope is None:
            carrier: dict[str, str] = {}
            propagate.inject(carrier, traced)
            assignment.scope = (INSIDE, carrier)

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        driver = assignment.job.live.driver
        if self._inner is not None:
            self._inner.on_message(assignment, topic, content)
        elif driver is not None:
            driver.receive(topic, content)
        elif topic in ("log", "output"):
            log_message(assignment, topic, content)
