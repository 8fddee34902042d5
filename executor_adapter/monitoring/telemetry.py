"""Whether the program has set up OpenTelemetry, without an import of it: then the program has imported it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

SCOPE = "executor_adapter"


def tracer_in_use() -> Tracer | None:
    """Return a tracer of the provider that this process has set up; None where it has none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    tracer: Tracer = trace.get_tracer(SCOPE)
    return tracer


def meter_in_use() -> Meter | None:
    """Return a meter of the provider that this process has set up; None where it has none."""
    metrics = sys.modules.get("opentelemetry.metrics")
    if metrics is None:
        return None
    provider = metrics.get_meter_provider()
    if type(provider).__module__.startswith("opentelemetry.metrics"):  # The API's own ones record nothing.
        return None
    meter: Meter = provider.get_meter(SCOPE)
    return meter
