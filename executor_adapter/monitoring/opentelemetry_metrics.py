"""Metrics for OpenTelemetry, where the program has set up a meter provider before the executor is made.

    executor_adapter.jobs.ended        counter by status, job.type, job.tool, error.type
    executor_adapter.job.retries       counter by job.type, job.tool, error.type
    executor_adapter.job.duration      histogram, s: from a job's first start to its end
    executor_adapter.job.queue_time    histogram, s: from submit to the first start

The gauges are those of Prometheus (gauges.py), as `executor_adapter.NAME`. `error.type` is the job's error code, as in
the spans. Attributes that a job does not have are left out.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from executor_adapter.monitoring.gauges import GAUGES, Gauge, stats_of
from executor_adapter.monitoring.job_counter import BUCKETS, PREFIX, JobCounter, JobLabels

Attributes = dict[str, str]


class OpenTelemetryMetrics(JobCounter):
    """Counts the jobs of executors with the instruments of `meter`, which ask for the gauges when they are read."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._jobs_ended = meter.create_counter(f"{PREFIX}.jobs.ended", "{job}", "Jobs that ended.")
        self._retries = meter.create_counter(f"{PREFIX}.job.retries", "{attempt}", "Attempts followed by another.")
        self._duration = meter.create_histogram(
            f"{PREFIX}.job.duration", "s", "From first start to end.", explicit_bucket_boundaries_advisory=BUCKETS
        )
        self._queue_time = meter.create_histogram(
            f"{PREFIX}.job.queue_time", "s", "From submit to first start.", explicit_bucket_boundaries_advisory=BUCKETS
        )
        for gauge in GAUGES:
            observe = functools.partial(self._observe, gauge)
            meter.create_observable_gauge(f"{PREFIX}.{gauge.name}", [observe], gauge.unit, gauge.text)

    def _observe(self, gauge: Gauge, _: CallbackOptions) -> Iterable[Observation]:
        for label, value in gauge.read(stats_of(self.executors)).items():
            yield Observation(value, {} if gauge.label is None else {gauge.label: label})

    def _ended(self, labels: JobLabels, status: str, error_code: str) -> None:
        self._jobs_ended.add(1, {"status": status} | _attributes(labels, error_code))

    def _retried(self, labels: JobLabels, error_code: str) -> None:
        self._retries.add(1, _attributes(labels, error_code))

    def _took(self, labels: JobLabels, seconds: float) -> None:
        self._duration.record(seconds, _attributes(labels))

    def _waited(self, labels: JobLabels, seconds: float) -> None:
        self._queue_time.record(seconds, _attributes(labels))


def _attributes(labels: JobLabels, error_code: str = "") -> Attributes:
    named = {"job.type": labels.job_type, "job.tool": labels.tool_name, "error.type": error_code}
    return {name: value for name, value in named.items() if value}


_made: dict[Meter, OpenTelemetryMetrics] = {}
_made_lock = threading.Lock()


def metrics_of(meter: Meter) -> OpenTelemetryMetrics:
    """Return this process's metrics of that meter: its instruments can be made only once."""
    with _made_lock:
        if meter not in _made:
            _made[meter] = OpenTelemetryMetrics(meter)
        return _made[meter]


def _leave_to_parent() -> None:
    """Show no executors of the parent in a forked process."""
    global _made_lock
    _made_lock = threading.Lock()
    for metrics in _made.values():
        metrics.executors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
