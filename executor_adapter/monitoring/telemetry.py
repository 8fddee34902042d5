"""Whether the program has set up OpenTelemetry, without an import of it: then the program has imported it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SCOPE = "executor_adapter"


def tracer_in_use() -> Tracer | None:
    """Return a tracer of the provider that this process has set up; None where it has none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    tracer: Tracer = trace.get_tracer(SCOPE)
    return tracer
