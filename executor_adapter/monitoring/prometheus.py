"""Metrics for Prometheus, counted as jobs end: for a port of their own (port.py), or in the default registry.

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

import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, storable
from executor_adapter.monitoring.gauges import GAUGES, Measured, stats_of
from executor_adapter.supervision import QUEUE_SECONDS

PREFIX = "executor_adapter"
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds of the histograms' buckets."""
MAX_LABEL_VALUES = 100
"""Different values of a label; further ones count as "other", because each adds a time series forever."""


class JobLabels(NamedTuple):
    """The labels of a job; "" where it has no tool."""

    job_type: str
    tool_name: str


class JobMetrics(Collector):
    """An observer of executors that counts their jobs in `registry`, and collects their figures at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.executors: set[Measured] = set()
        """Whose figures the gauges show."""
        self._names: set[str] = set()
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

    def on_transition(self, transition: Transition) -> None:
        """Count a transition; called on supervisors' threads."""
        job, status = transition.job, transition.status
        if status is JobStatus.RETRYING:
            self._retries.labels(*self._labels_of(job), self._label(job.error_code or "")).inc()
        elif status in TERMINAL:
            self._count_end(job, status)

    def _count_end(self, job: Job, status: JobStatus) -> None:
        labels, attempts = self._labels_of(job), job.state.attempts
        self._jobs_ended.labels(status.value, *labels, self._label(job.error_code or "")).inc()
        if attempts:
            self._queue_seconds.labels(*labels).observe(attempts[0][QUEUE_SECONDS])
        if (seconds := job.duration) is not None:
            self._job_seconds.labels(*labels).observe(seconds)

    def _labels_of(self, job: Job) -> JobLabels:
        return JobLabels(self._label(job.job_type), self._label(job.tool_name or ""))

    def _label(self, name: str) -> str:
        name = storable(name)  # A single value that is not text would make every scrape fail.
        if name and name not in self._names:
            if len(self._names) >= MAX_LABEL_VALUES:
                return "other"
            self._names.add(name)
        return name

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of this moment; called at each scrape."""
        stats = stats_of(self.executors)
        for gauge in GAUGES:
            labels = () if gauge.label is None else (gauge.label,)
            family = GaugeMetricFamily(f"{PREFIX}_{gauge.name}", gauge.text, labels=labels)
            for label, value in gauge.read(stats).items():
                family.add_metric((label,) if labels else (), value)
            yield family


_in_default_registry: list[JobMetrics] = []
"""The metrics that are registered there, of which there can be one."""
_lock = threading.Lock()


def metrics_in_default_registry() -> JobMetrics:
    """Return this process's metrics in prometheus_client's default registry, which whoever serves that serves too."""
    with _lock:
        if not _in_default_registry:
            _in_default_registry.append(JobMetrics(REGISTRY))
        return _in_default_registry[0]


def _leave_to_parent() -> None:
    """Show no executors of the parent in a forked process."""
    global _lock
    _lock = threading.Lock()
    for metrics in _in_default_registry:
        metrics.executors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
