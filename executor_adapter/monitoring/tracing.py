"""Spans for OpenTelemetry: one for each job, from submit to its end, and in it one for each attempt.

A job's span is a child of the span in which the job was submitted. Spans that its function opens are children of the
job's span: in threads and coroutines through the context, in worker processes through the ids of trace and span. Needs
opentelemetry-api (the extra `tracing`) and a tracer provider that is set up before the executor is made; without one
there are no spans.

A span that ended in an error has the attribute `error.type`, the job's error code, and an event `exception` with the
class, the message and the traceback, by the semantic conventions of OpenTelemetry.
"""

from __future__ import annotations

import contextvars
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode, Tracer

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, storable
from executor_adapter.monitoring.trace_scope import INSIDE
from executor_adapter.pools.base import Assignment
from executor_adapter.supervision.messages import JobScope

IN_THIS_PROCESS = frozenset({"thread", "coroutine"})


class JobTracer:
    """An observer that opens and ends spans."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._jobs: dict[Job, Span] = {}
        self._attempts: dict[Job, Span] = {}

    def on_transition(self, transition: Transition) -> None:
        """Open or end the spans that this transition begins or finishes."""
        job, status = transition.job, transition.status
        if transition.previous is None:
            self._open(job)
            return
        if transition.previous is JobStatus.RUNNING:
            self._end(self._attempts.pop(job, None), transition)
        if status is JobStatus.RUNNING:
            self._begin_attempt(job, transition)
        elif status in TERMINAL:
            self._end(self._jobs.pop(job, None), transition)

    def context_of(self, job: Job) -> Context:
        """Return a context in which the job's own span is the current one."""
        return trace.set_span_in_context(self._jobs[job])

    # --- on the supervisor's thread ---

    def _open(self, job: Job) -> None:
        attributes = {"executor_adapter.job.id": job.job_id, "executor_adapter.job.type": job.job_type}
        if job.tool_name is not None:
            attributes["executor_adapter.job.tool"] = job.tool_name
        scope = job.live.scope
        self._jobs[job] = self._tracer.start_span(
            f"job {job.job_type}",
            context=scope.parent if isinstance(scope, SpanScope) else None,
            attributes=attributes,
            start_time=_nanoseconds(job.state.created_at),
        )

    def _begin_attempt(self, job: Job, transition: Transition) -> None:
        self._attempts[job] = self._tracer.start_span(
            f"attempt {transition.attempt}",
            context=self.context_of(job),
            attributes={
                "executor_adapter.job.id": job.job_id,
                "executor_adapter.attempt": transition.attempt,
                "executor_adapter.pool": job.live.pool,
            },
            start_time=_nanoseconds(transition.at),
        )

    def _end(self, span: Span | None, transition: Transition) -> None:
        if span is None:
            return
        if transition.error is not None:
            _record(transition.error, span, transition)
        elif transition.status is JobStatus.COMPLETED and transition.job.records_processed is not None:
            span.set_attribute("executor_adapter.records_processed", transition.job.records_processed)
        span.end(end_time=_nanoseconds(transition.at))


class SpanScope:
    """A JobScope that remembers the span in which the job was submitted, around the scope `inner` if there is one."""

    def __init__(self, tracer: JobTracer, inner: JobScope | None = None) -> None:
        self.parent = context.get_current()
        self.receives = inner is not None and inner.receives
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
        assert self._inner is not None, "nobody else receives messages"
        self._inner.on_message(assignment, topic, content)


def _record(error: ErrorFacts, span: Span, transition: Transition) -> None:
    """Let the span say how it failed."""
    job = transition.job
    code, message = storable(job.error_code or "_OTHER"), storable(job.error_message or "")
    attributes = {
        "exception.type": error.kinds[0].removeprefix("builtins."),
        "exception.message": message,
        "exception.stacktrace": storable(error.traceback or ""),
    }
    span.set_attribute("error.type", code)
    span.add_event("exception", attributes, timestamp=_nanoseconds(transition.at))
    span.set_status(StatusCode.ERROR, f"{code}: {message}")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
