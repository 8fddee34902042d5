"""Starts serving metrics where the settings name a port; otherwise prometheus-client is not imported."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from executor_adapter.config import MonitoringSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import Transition
from executor_adapter.supervision import ExecutorStats

if TYPE_CHECKING:
    from executor_adapter.monitoring.prometheus import MetricsPort


class HasStats(Protocol):
    """Something that has figures: a JobExecutor."""

    def stats(self) -> ExecutorStats: ...


def serve_metrics(
    executor: HasStats,
    settings: MonitoringSettings,
    *,
    observers: list[Callable[[Transition], None]],
    on_closed: list[Callable[[], object]],
) -> MetricsPort | None:
    """Count the executor's jobs and serve the figures until it is closed, if the settings name a port.

    Raises:
        ConfigurationError: They name one, and prometheus-client is not installed.
    """
    if settings.metrics_port is None:
        return None
    port, watched = _port(settings.metrics_host, settings.metrics_port), _WeakStats(executor)
    observers.append(port.metrics.on_transition)
    port.add(watched)
    on_closed.append(lambda: port.remove(watched))
    return port


class _WeakStats:
    """An executor's figures, without a reference that keeps the executor: it closes when garbage-collected."""

    def __init__(self, executor: HasStats) -> None:
        self._executor = weakref.ref(executor)

    def stats(self) -> ExecutorStats | None:
        executor = self._executor()
        return None if executor is None else executor.stats()


def _port(host: str, port: int) -> MetricsPort:
    try:
        from executor_adapter.monitoring.prometheus import metrics_at
    except ImportError as error:
        raise ConfigurationError(
            f"monitoring.metrics_port: {port} needs prometheus-client ({error}): "
            "pip install 'prefect-executor-adapter[metrics]'"
        ) from None
    return metrics_at(host, port)
