"""Measures jobs, watches them, and exports the figures.

health.py        HealthMonitor: alerts for stuck jobs and for too many failures
prometheus.py    counts and figures of jobs, served at a port for Prometheus (metrics_port.py starts it)
tracing.py       a span for each job and attempt, for OpenTelemetry
trace_scope.py   puts a function in a worker process into its job's span
findings.py      what a check of `executor-adapter doctor` found, and what to do about it

Names are loaded when first used: worker processes import trace_scope.py and need nothing else of this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor_adapter.monitoring.health import Alert, AlertKind, HealthMonitor
    from executor_adapter.supervision.stats import ExecutorStats

_HOMES = {
    "Alert": "monitoring.health",
    "AlertKind": "monitoring.health",
    "ExecutorStats": "supervision.stats",
    "HealthMonitor": "monitoring.health",
}

__all__ = ["Alert", "AlertKind", "ExecutorStats", "HealthMonitor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"executor_adapter.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
