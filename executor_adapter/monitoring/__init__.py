"""Measures jobs, watches them, and exports the figures.

health.py                  HealthMonitor: alerts for stuck jobs, limits that are near and too many failures
exporters.py               starts what follows where the settings or the program ask for it
prometheus.py              metrics for Prometheus
port.py                    a port that serves them, and whether the program is alive and ready
probe.py                   a command that asks such a port, for containers
tracing.py                 a span for each job and attempt, for OpenTelemetry
trace_scope.py             puts a function in a worker process into its job's span
progress.py                progress bars on the terminal, and plain lines in a pipe
findings.py                what a check of `executor-adapter doctor` found, and what to do about it

Names are loaded when first used: worker processes import trace_scope.py and need nothing else of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.job import NearLimit as NearLimit
    from executor_adapter.monitoring.exporters import export_metrics as export_metrics
    from executor_adapter.monitoring.exporters import tracer_in_use as tracer_in_use
    from executor_adapter.monitoring.findings import Finding as Finding
    from executor_adapter.monitoring.findings import Level as Level
    from executor_adapter.monitoring.findings import fine as fine
    from executor_adapter.monitoring.findings import ready_checks as ready_checks
    from executor_adapter.monitoring.findings import warning as warning
    from executor_adapter.monitoring.findings import wrong as wrong
    from executor_adapter.monitoring.health import Alert as Alert
    from executor_adapter.monitoring.health import AlertKind as AlertKind
    from executor_adapter.monitoring.health import HealthMonitor as HealthMonitor
    from executor_adapter.monitoring.port import MetricsPort as MetricsPort
    from executor_adapter.monitoring.progress import ProgressBar as ProgressBar
    from executor_adapter.monitoring.progress import ProgressCounts as ProgressCounts
    from executor_adapter.monitoring.trace_scope import INSIDE as INSIDE
    from executor_adapter.monitoring.tracing import JobTracer as JobTracer
    from executor_adapter.monitoring.tracing import SpanScope as SpanScope
    from executor_adapter.supervision.outcome import ExecutorStats as ExecutorStats

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
