"""What is measured of jobs, who looks at it, and how it leaves the program.

stats.py        ExecutorStats: counts since the start, and figures of the jobs that ended last
health.py       HealthMonitor: jobs that are stuck, and failures that are too many, as alerts
prometheus.py   the same figures at a port, for Prometheus
tracing.py      a span for each job and attempt, for OpenTelemetry
"""

from __future__ import annotations

from executor_adapter.monitoring.health import Alert, AlertKind, HealthMonitor
from executor_adapter.supervision.stats import ExecutorStats

__all__ = ["Alert", "AlertKind", "ExecutorStats", "HealthMonitor"]
