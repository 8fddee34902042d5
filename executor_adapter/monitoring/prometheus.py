"""Metrics for Prometheus, counted as jobs end: at a port of their own, or in the default registry of the process.

    executor_adapter_jobs_ended_total        by status, job_type, tool_name, error_code
    executor_adapter_retries_total           by job_type, tool_name, error_code
    executor_adapter_job_seconds             from a job's first start to its end; a histogram by job_type, tool_name
    executor_adapter_queue_seconds           from submit to the first start; a histogram with the same labels
    executor_adapter_jobs                    now, by status: pending, running, retrying
    executor_adapter_jobs_near_limit         jobs that have used most of their max_runtime or deadline
    executor_adapter_workers_busy, executor_adapter_abandoned_threads, executor_adapter_quarantined_jobs
    executor_adapter_longest_running_seconds of the running attempts
    executor_adapter_waiting_for_memory      executors that start no further attempt because memory is short
    executor_adapter_memory_left_bytes, executor_adapter_memory_limit_bytes where memory is scarcest

Needs prometheus-client: the extra `metrics`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from executor_adapter.monitoring.gauges import GAUGES, Measured, stats_of
from executor_adapter.monitoring.job_counter import BUCKETS, PREFIX, JobCounter, JobLabels

logger = logging.getLogger("executor_adapter.metrics")


class JobMetrics(JobCounter, Collector):
    """Counts the jobs of executors in `registry`, and collects their figures at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        labels = JobLabels._fields
        self._jobs_ended = Counter(
            f"{PREFIX}_jobs_ended", "Jobs that ended.", ("status", *labels, "error_code"), registry=registry
        )
        self._retries = Counter(
            f"{PREFIX}_retries", "Attempts followed by another.", (*labels, "error_code"), registry=registry
        )
        self._job_seconds = Histogram(
            f"{PREFIX}_job_seconds", "From first start to end.", labels, buckets=BUCKETS, registry=registry
        )
        self._queue_seconds = Histogram(
            f"{PREFIX}_queue_seconds", "From submit to first start.", labels, buckets=BUCKETS, registry=registry
        )
        registry.register(self)

    def _ended(self, labels: JobLabels, status: str, error_code: str) -> None:
        self._jobs_ended.labels(status, *labels, error_code).inc()

    def _retried(self, labels: JobLabels, error_code: str) -> None:
        self._retries.labels(*labels, error_code).inc()

    def _took(self, labels: JobLabels, seconds: float) -> None:
        self._job_seconds.labels(*labels).observe(seconds)

    def _waited(self, labels: JobLabels, seconds: float) -> None:
        self._queue_seconds.labels(*labels).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment; called at each scrape."""
        stats = stats_of(self.executors)
        for gauge in GAUGES:
            labels = () if gauge.label is None else (gauge.label,)
            family = GaugeMetricFamily(f"{PREFIX}_{gauge.prometheus_name}", gauge.text, labels=labels)
            for label, value in gauge.read(stats).items():
                family.add_metric((label,) if labels else (), value)
            yield family


class MetricsPort:
    """Serves the metrics while any executor is open; counters keep their values between executors."""

    def __init__(self, host: str, port: int) -> None:
        self._registry = CollectorRegistry()
        self.metrics = JobMetrics(self._registry)
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def url(self) -> str | None:
        """The URL of the metrics; None while they are not served."""
        return None if self._server is None else f"http://{self._host}:{self._server.port}/metrics"

    def add(self, executor: Measured) -> None:
        """Serve this executor's figures too. A port that is taken is logged as an error; jobs run without metrics."""
        with self._lock:
            self.metrics.executors.add(executor)
            if self._server is None:
                try:
                    self._server = _Server(self._host, self._port, self._registry)
                except OSError as error:
                    where = f"{self._host}:{self._port}"
                    logger.error(
                        "cannot serve metrics at %s: %s: free the port, or set monitoring.metrics_port", where, error
                    )

    def leave_to_parent(self) -> None:
        """Release the port in a forked process, so that it is free when the parent ends."""
        if self._server is not None:
            self._server.leave_to_parent()

    def remove(self, executor: Measured) -> None:
        """Stop serving this executor's figures, and close the port after the last one."""
        with self._lock:
            self.metrics.executors.discard(executor)
            server = None if self.metrics.executors else self._server
            if server is not None:
                self._server = None
        if server is not None:
            server.close()


class _Server:
    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port

    def leave_to_parent(self) -> None:
        """Close the socket in a forked process, so that the port is free when the parent ends."""
        self._server.socket.close()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


_ports: dict[tuple[str, int], MetricsPort] = {}
_in_default_registry: list[JobMetrics] = []
"""The metrics that are registered there, of which there can be one."""
_ports_lock = threading.Lock()


def metrics_at(host: str, port: int) -> MetricsPort:
    """Return this process's server of metrics at that address."""
    with _ports_lock:
        return _ports.setdefault((host, port), MetricsPort(host, port))


def metrics_in_default_registry() -> JobMetrics:
    """Return this process's metrics in prometheus_client's default registry, which whoever serves that serves too."""
    with _ports_lock:
        if not _in_default_registry:
            _in_default_registry.append(JobMetrics(REGISTRY))
        return _in_default_registry[0]


def _leave_to_parent() -> None:
    """Forget the servers and the executors in a forked process: they run in the parent."""
    global _ports_lock
    _ports_lock = threading.Lock()
    for port in _ports.values():
        port.leave_to_parent()
    _ports.clear()
    for metrics in _in_default_registry:
        metrics.executors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
