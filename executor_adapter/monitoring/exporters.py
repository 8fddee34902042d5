"""Exports metrics and traces to where the settings and the program want them. Imports nothing else of that."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from executor_adapter.config import MonitoringSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from executor_adapter.monitoring.port import MetricsPort
    from executor_adapter.monitoring.prometheus import Watched

TRACER_NAME = "executor_adapter"


def export_metrics(executor: Watched, settings: MonitoringSettings, supervisor: Supervisor) -> MetricsPort | None:
    """Count the executor's jobs, and export its figures until it is closed, to each place that is set up.

    These are the port that the settings name, which is returned, and prometheus_client's default registry, if the
    settings say so.

    Raises:
        ConfigurationError: The settings need prometheus-client, and it is not installed.
    """
    if settings.metrics_port is None and not settings.default_registry:
        return None
    try:
        from executor_adapter.monitoring import port, prometheus
    except ImportError as error:
        key = "metrics_port" if settings.metrics_port is not None else "default_registry"
        raise ConfigurationError(
            f"monitoring.{key} needs prometheus-client ({error}): pip install 'prefect-executor-adapter[metrics]'"
        ) from None
    watched, metrics = prometheus.WatchedExecutor(executor, supervisor), prometheus.metrics
    supervisor.tracker.observers.append(metrics.on_transition)
    metrics.executors.add(watched)
    supervisor.thread.on_closed.append(functools.partial(metrics.executors.discard, watched))
    if settings.default_registry:
        metrics.show_in_default_registry()
    if settings.metrics_port is None:
        return None
    shown_at = port.metrics_at(settings.metrics_host, settings.metrics_port)
    shown_at.open()
    supervisor.thread.on_closed.append(shown_at.close)
    return shown_at


def tracer_in_use() -> Tracer | None:
    """Return a tracer of the provider that this process has set up; None where it has none.

    OpenTelemetry is not imported for that: a program that has set it up has imported it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    tracer: Tracer = trace.get_tracer(TRACER_NAME)
    return tracer
