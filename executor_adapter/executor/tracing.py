"""Puts the jobs of an executor into spans. Needs OpenTelemetry, which is optional: loaded where it is set up."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.trace import Tracer

from executor_adapter.executor.defaults import preload_in_workers
from executor_adapter.job import Job, Observer
from executor_adapter.monitoring import INSIDE, JobTracer
from executor_adapter.pools import Assignment
from executor_adapter.supervision import JobScope, UnclaimedMessages

IN_THIS_PROCESS = frozenset({"thread", "coroutine"})


def trace_jobs(
    tracer: Tracer, observers: list[Observer], unclaimed: UnclaimedMessages
) -> Callable[[JobScope | None], JobScope]:
    """Return what makes a submitted job's scope one in a span of its own."""
    preload_in_workers(INSIDE.partition(":")[0])
    spans = JobTracer(tracer, _parent_of)
    observers.append(spans.on_transition)
    return functools.partial(SpanScope, spans, unclaimed)


def _parent_of(job: Job) -> Context | None:
    """Return the context in which a traced job was submitted; None for another job."""
    scope = job.live.scope
    return scope.parent if isinstance(scope, SpanScope) else None


class SpanScope:
    """A JobScope that remembers the span in which the job was submitted, around the scope `inner` if there is one."""

    def __init__(self, tracer: JobTracer, unclaimed: UnclaimedMessages, inner: JobScope | None = None) -> None:
        self.parent = context.get_current()
        self._submitted_in = contextvars.copy_context()
        self._tracer = tracer
        self.inner = inner
        self._unclaimed = unclaimed

    def prepare(self, assignment: Assignment) -> None:
        if self.inner is not None:
            self.inner.prepare(assignment)
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
        if self.inner is not None:
            self.inner.on_message(assignment, topic, content)
        elif driver is not None and driver.has_listeners:
            driver.receive(topic, content)
        else:
            self._unclaimed.receive(assignment, topic, content)

    def why_cancelled(self) -> str | None:
        return None if self.inner is None else self.inner.why_cancelled()
