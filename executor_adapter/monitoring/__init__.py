"""Measures jobs, watches them, and exports the figures.

health.py        HealthMonitor: alerts for stuck jobs and for too many failures
prometheus.py    counts and figures of jobs, served at a port for Prometheus (metrics_port.py starts it)
tracing.py       a span for each job and attempt, for OpenTelemetry
progress.py      progress bars on the terminal, and plain lines in a pipe
trace_scope.py   puts a function in a worker process into its job's span
findings.py      what a check of `executor-adapter doctor` found, and what to do about it

Names are loaded when first used: worker processes import trace_scope.py and need nothing else of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.monitoring.findings import Finding, Level, fine, warning, wrong
    from executor_adapter.monitoring.health import Alert, AlertKind, HealthMonitor
    from executor_adapter.monitoring.metrics_port import serve_metrics
    from executor_adapter.monitoring.progress import ProgressBar, ProgressCounts
    from executor_adapter.monitoring.trace_scope import INSIDE
    from executor_adapter.monitoring.tracing import JobTracer, tracer_in_use
    from executor_adapter.supervision import ExecutorStats

_HOMES = {
    "Alert": "executor_adapter.monitoring.health",
    "AlertKind": "executor_adapter.monitoring.health",
    "ExecutorStats": "executor_adapter.supervision",
    "Finding": "executor_adapter.monitoring.findings",
    "HealthMonitor": "executor_adapter.monitoring.health",
    "INSIDE": "executor_adapter.monitoring.trace_scope",
    "JobTracer": "executor_adapter.monitoring.tracing",
    "Level": "executor_adapter.monitoring.findings",
    "ProgressBar": "executor_adapter.monitoring.progress",
    "ProgressCounts": "executor_adapter.monitoring.progress",
    "fine": "executor_adapter.monitoring.findings",
    "serve_metrics": "executor_adapter.monitoring.metrics_port",
    "tracer_in_use": "executor_adapter.monitoring.tracing",
    "warning": "executor_adapter.monitoring.findings",
    "wrong": "executor_adapter.monitoring.findings",
}

__all__ = [
    "INSIDE",
    "Alert",
    "AlertKind",
    "ExecutorStats",
    "Finding",
    "HealthMonitor",
    "JobTracer",
    "Level",
    "ProgressBar",
    "ProgressCounts",
    "fine",
    "serve_metrics",
    "tracer_in_use",
    "warning",
    "wrong",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
