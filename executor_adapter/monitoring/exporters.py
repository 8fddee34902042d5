"""Exports the metrics of an executor to where the settings and the program want them. Imports nothing else of that."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Protocol

from executor_adapter.config import MonitoringSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.monitoring.findings import ready_checks
from executor_adapter.store import JobStore, StoreUnavailableError
from executor_adapter.supervision import ExecutorStats, Supervisor

if TYPE_CHECKING:
    from executor_adapter.monitoring.port import MetricsPort
    from executor_adapter.monitoring.prometheus import JobMetrics

TURN_SECONDS = 10.0
"""Seconds within which a supervisor makes a turn, however much it has to do."""


class Open(Protocol):
    """Something that has figures and may have a store: a JobExecutor."""

    @property
    def store(self) -> JobStore | None: ...

    def stats(self) -> ExecutorStats: ...


def export_metrics(executor: Open, settings: MonitoringSettings, supervisor: Supervisor) -> MetricsPort | None:
    """Count the executor's jobs, and export its figures until it is closed, to each place that is set up.

    These are the port of its own that the settings name, which is returned, and prometheus_client's default registry,
    if the settings say so.

    Raises:
        ConfigurationError: The settings need prometheus-client, and it is not installed.
    """
    watched = _WeakExecutor(executor, supervisor)
    observers, on_closed = supervisor.tracker.observers, supervisor.thread.on_closed
    if settings.default_registry:
        counter = _default_registry()
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


def _default_registry() -> JobMetrics:
    try:
        from executor_adapter.monitoring.prometheus import metrics_in_default_registry
    except ImportError as error:
        raise _missing("monitoring.default_registry: true", error) from None
    return metrics_in_default_registry()


def _port(host: str, port: int) -> MetricsPort:
    try:
        from executor_adapter.monitoring.port import metrics_at
    except ImportError as error:
        raise _missing(f"monitoring.metrics_port: {port}", error) from None
    return metrics_at(host, port)


def _missing(setting: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"{setting} needs prometheus-client ({error}): pip install 'prefect-executor-adapter[metrics]'"
    )
