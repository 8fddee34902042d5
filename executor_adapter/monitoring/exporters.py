"""Exports metrics and traces to where the settings and the program want them. Imports nothing else of that."""

from __future__ import annotations

import functools
import sys
import weakref
from typing import TYPE_CHECKING, Protocol

from executor_adapter.config import MonitoringSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.monitoring.findings import ready_checks
from executor_adapter.store import JobStore, StoreUnavailableError
from executor_adapter.supervision import ExecutorStats, Supervisor

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from executor_adapter.monitoring.port import MetricsPort

TRACER_NAME = "executor_adapter"
TURN_SECONDS = 10.0
"""Seconds within which a supervisor makes a turn, however much it has to do."""


class Open(Protocol):
    """Something that has figures and may have a store: a JobExecutor."""

    @property
    def store(self) -> JobStore | None: ...

    def stats(self) -> ExecutorStats: ...


def export_metrics(executor: Open, settings: MonitoringSettings, supervisor: Supervisor) -> MetricsPort | None:
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
    watched, metrics = _WeakExecutor(executor, supervisor), prometheus.metrics
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


class _WeakExecutor:
    """An executor's figures and health, without a reference that keeps it: it closes when garbage-collected."""

    def __init__(self, executor: Open, supervisor: Supervisor) -> None:
        self._executor = weakref.ref(executor)
        self._supervisor = supervisor

    def stats(self) -> ExecutorStats | None:
        executor = self._executor()
        return None if executor is None else executor.stats()

    def stuck(self) -> list[str]:
        """Return what is wrong where the supervisor makes no turn any more."""
        if self._supervisor.thread.catch_up(TURN_SECONDS):
            return []
        return [f"supervisor: it has made no turn for {TURN_SECONDS:.0f} s, so no job starts or ends"]

    def unready(self) -> list[str]:
        """Return what is wrong with the store, and with what else the program needs."""
        wrong = [f"{name}: {found}" for name, check in ready_checks.items() if (found := check())]
        executor = self._executor()
        try:
            if executor is not None and executor.store is not None:
                executor.store.get("")
        except StoreUnavailableError as error:
            wrong.append(f"store: {error}")
        return wrong


def tracer_in_use() -> Tracer | None:
    """Return a tracer of the provider that this process has set up; None where it has none.

    OpenTelemetry is not imported for that: a program that has set it up has imported it.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    tracer: Tracer = trace.get_tracer(TRACER_NAME)
    return tracer
