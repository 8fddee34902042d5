"""Exports the metrics of an executor to where the settings and the program want them. Imports nothing else of that."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from executor_adapter.config import MonitoringSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import Observer
from executor_adapter.monitoring.telemetry import meter_in_use
from executor_adapter.supervision import ExecutorStats

if TYPE_CHECKING:
    from executor_adapter.monitoring.job_counter import JobCounter
    from executor_adapter.monitoring.prometheus import MetricsPort


class HasStats(Protocol):
    """Something that has figures: a JobExecutor."""

    def stats(self) -> ExecutorStats: ...


def export_metrics(
    executor: HasStats,
    settings: MonitoringSettings,
    *,
    observers: list[Observer],
    on_closed: list[Callable[[], object]],
) -> MetricsPort | None:
    """Count the executor's jobs, and export its figures until it is closed, to each place that is set up.

    These are the port of its own that the settings name, which is returned; prometheus_client's default registry, if
    the settings say so; and OpenTelemetry, if the program has set up a meter provider.

    Raises:
        ConfigurationError: The settings need prometheus-client, and it is not installed.
    """
    watched = _WeakStats(executor)
    for counter in _counters(settings):
        observers.append(counter.on_transition)
        counter.executors.add(watched)
        on_closed.append(functools.partial(counter.executors.discard, watched))
    if settings.metrics_port is None:
        return None
    port = _port(settings.metrics_host, settings.metrics_port)
    observers.append(port.metrics.on_transition)
    port.add(watched)
    on_closed.append(functools.partial(port.remove, watched))
    return port


class _WeakStats:
    """An executor's figures, without a reference that keeps the executor: it closes when garbage-collected."""

    def __init__(self, executor: HasStats) -> None:
        self._executor = weakref.ref(executor)

    def stats(self) -> ExecutorStats | None:
        executor = self._executor()
        return None if executor is None else executor.stats()


def _counters(settings: MonitoringSettings) -> Iterator[JobCounter]:
    if settings.default_registry:
        try:
            from executor_adapter.monitoring.prometheus import metrics_in_default_registry
        except ImportError as error:
            raise _missing("monitoring.default_registry: true", error) from None
        yield metrics_in_default_registry()
    meter = meter_in_use()
    if meter is not None:
        from executor_adapter.monitoring.opentelemetry_metrics import metrics_of

        yield metrics_of(meter)


def _port(host: str, port: int) -> MetricsPort:
    try:
        from executor_adapter.monitoring.prometheus import metrics_at
    except ImportError as error:
        raise _missing(f"monitoring.metrics_port: {port}", error) from None
    return metrics_at(host, port)


def _missing(setting: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"{setting} needs prometheus-client ({error}): pip install 'prefect-executor-adapter[metrics]'"
    )
