"""Metrics for Prometheus, counted as jobs end, and served at a port that all executors of the process share.

    executor_adapter_jobs_ended_total        by status, job_type, tool_name, error_code
    executor_adapter_retries_total           by job_type, tool_name, error_code
    executor_adapter_job_seconds             from a job's first start to its end; a histogram by job_type, tool_name
    executor_adapter_queue_seconds           from submit to the first start; a histogram with the same labels
    executor_adapter_jobs                    now, by status: pending, running, retrying
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
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, storable
from executor_adapter.supervision import QUEUE_SECONDS, ExecutorStats

logger = logging.getLogger("executor_adapter.metrics")

PREFIX = "executor_adapter"
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
MAX_LABEL_VALUES = 100
"""Different values of a label; further ones count as "other", because each adds a time series forever."""


class Measured(Protocol):
    """Something whose figures are served; its stats are None once it is closed."""

    def stats(self) -> ExecutorStats | None: ...


class JobMetrics(Collector):
    """Counts the jobs of executors, and collects their figures at each scrape.

    `on_transition` is called on the supervisors' threads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.executors: set[Measured] = set()
        job_labels = ("job_type", "tool_name")
        self._ended = Counter(
            f"{PREFIX}_jobs_ended",
            "Jobs that ended.",
            ("status", *job_labels, "error_code"),
            registry=self.registry,
        )
        self._retries = Counter(
            f"{PREFIX}_retries",
            "Attempts followed by another.",
            (*job_labels, "error_code"),
            registry=self.registry,
        )
        self._job_seconds = Histogram(
            f"{PREFIX}_job_seconds", "From first start to end.", job_labels, buckets=BUCKETS, registry=self.registry
        )
        self._queue_seconds = Histogram(
            f"{PREFIX}_queue_seconds",
            "From submit to first start.",
            job_labels,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._names: set[str] = set()
        self.registry.register(self)

    def on_transition(self, transition: Transition) -> None:
        """Count a transition."""
        job, status = transition.job, transition.status
        if status is JobStatus.RETRYING:
            self._retries.labels(*self._labels_of(job), self._label(job.error_code or "")).inc()
        elif status in TERMINAL:
            self._count_end(job, status)

    def _count_end(self, job: Job, status: JobStatus) -> None:
        job_labels, attempts = self._labels_of(job), job.state.attempts
        self._ended.labels(status.value, *job_labels, self._label(job.error_code or "")).inc()
        if attempts:
            self._queue_seconds.labels(*job_labels).observe(attempts[0][QUEUE_SECONDS])
        if (seconds := job.duration) is not None:
            self._job_seconds.labels(*job_labels).observe(seconds)

    def _labels_of(self, job: Job) -> tuple[str, str]:
        return self._label(job.job_type), self._label(job.tool_name or "")

    def _label(self, name: str) -> str:
        name = storable(name)  # A single value that is not text would make every scrape fail.
        if name and name not in self._names:
            if len(self._names) >= MAX_LABEL_VALUES:
                return "other"
            self._names.add(name)
        return name

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment, summed over all executors; called at each scrape."""
        stats = [found for executor in tuple(self.executors) if (found := executor.stats()) is not None]
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs that have not ended.", labels=["status"])
        jobs.add_metric(["pending"], sum(s.jobs_pending for s in stats))
        jobs.add_metric(["running"], sum(s.jobs_running for s in stats))
        jobs.add_metric(["retrying"], sum(s.jobs_retrying for s in stats))
        yield jobs
        busy, abandoned = sum(s.workers_busy for s in stats), sum(s.abandoned_threads for s in stats)
        quarantined, longest = sum(len(s.quarantined) for s in stats), [s.longest_running_seconds or 0.0 for s in stats]
        yield GaugeMetricFamily(f"{PREFIX}_workers_busy", "Workers that run a job.", value=busy)
        yield GaugeMetricFamily(f"{PREFIX}_abandoned_threads", "Threads that could not be stopped.", value=abandoned)
        yield GaugeMetricFamily(f"{PREFIX}_quarantined_jobs", "Jobs that killed too many workers.", value=quarantined)
        yield from self._memory(stats)
        oldest = max(longest, default=0.0)
        yield GaugeMetricFamily(
            f"{PREFIX}_longest_running_seconds", "Seconds of the longest running attempt.", value=oldest
        )

    @staticmethod
    def _memory(stats: list[ExecutorStats]) -> Iterator[Metric]:
        waiting = sum(s.waits_for_memory for s in stats)
        yield GaugeMetricFamily(f"{PREFIX}_waiting_for_memory", "Executors held by short memory.", value=waiting)
        known = [s for s in stats if s.memory_left_bytes is not None and s.memory_limit_bytes]
        if known:
            scarcest = min(known, key=lambda s: (s.memory_left_bytes or 0) / (s.memory_limit_bytes or 1))
            for name, text in (("left", "Memory that is left."), ("limit", "The limit of the memory that is left.")):
                value = getattr(scarcest, f"memory_{name}_bytes")
                yield GaugeMetricFamily(f"{PREFIX}_memory_{name}_bytes", text, value=value)


class MetricsPort:
    """Serves the metrics while any executor is open; counters keep their values between executors."""

    def __init__(self, host: str, port: int) -> None:
        self.metrics = JobMetrics()
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
                    self._server = _Server(self._host, self._port, self.metrics.registry)
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
_ports_lock = threading.Lock()


def metrics_at(host: str, port: int) -> MetricsPort:
    """Return this process's server of metrics at that address."""
    with _ports_lock:
        return _ports.setdefault((host, port), MetricsPort(host, port))


def _leave_to_parent() -> None:
    """Forget the servers in a forked process: they run in the parent."""
    global _ports_lock
    _ports_lock = threading.Lock()
    for port in _ports.values():
        port.leave_to_parent()
    _ports.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
