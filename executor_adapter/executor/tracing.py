"""Puts the jobs of an executor into spans, where the program has set up OpenTelemetry."""

from __future__ import annotations

import functools
from collections.abc import Callable

from executor_adapter.executor.pool_factory import preload_in_workers
from executor_adapter.job import Observer
from executor_adapter.monitoring import tracer_in_use
from executor_adapter.supervision import JobScope, UnclaimedMessages

TRACE_SCOPE = "executor_adapter.monitoring.trace_scope"
"""The module's name, not an import: it needs OpenTelemetry, which is optional."""


def trace_jobs(observers: list[Observer], unclaimed: UnclaimedMessages) -> Callable[[JobScope | None], JobScope] | None:
    """Return what makes a submitted job's scope one in a span of its own; None where no tracer is set up."""
    tracer = tracer_in_use()
    if tracer is None:
        return None
    from executor_adapter.executor.span_scope import SpanScope, parent_of
    from executor_adapter.monitoring import JobTracer

    preload_in_workers(TRACE_SCOPE)
    spans = JobTracer(tracer, parent_of)
    observers.append(spans.on_transition)
    return functools.partial(SpanScope, spans, unclaimed)
