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

import contextlib
import weakref
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, storable
from executor_adapter.monitoring.findings import ready_checks
from executor_adapter.store import JobStore, StoreUnavailableError
from executor_adapter.supervision.outcome import ExecutorStats
from executor_adapter.supervision.supervisor import Supervisor

PREFIX = "executor_adapter"
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds in seconds of the histograms' buckets."""
TURN_SECONDS = 10.0
"""Seconds within which a supervisor makes a turn, however much it has to do."""
MAX_LABEL_VALUES = 100
"""Different values of a label; further ones count as "other", because each adds a time series forever."""


class Watched(Protocol):
    """Something that has figures and may have a store: a JobExecutor."""

    @property
    def store(self) -> JobStore | None: ...

    def stats(self) -> ExecutorStats: ...


class WatchedExecutor:
    """An executor's figures and health, without a reference that keeps it: it closes when garbage-collected."""

    def __init__(self, executor: Watched, supervisor: Supervisor) -> None:
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


class JobLabels(NamedTuple):
    """The labels of a job; "" where it has no tool."""

    job_type: str
    tool_name: str


class JobMetrics(Collector):
    """An observer of executors that counts their jobs, and collects the counts and their figures at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Holds these metrics alone."""
        self.start_anew()
        self.registry.register(self)

    def start_anew(self) -> None:
        """Count from zero, as in a forked process: the executors and counts by then are its parent's."""
        self.executors: set[WatchedExecutor] = set()
        """Whose figures the gauges show, and whose health each port."""
        self._names: set[str] = set()
        labels = JobLabels._fields
        with_code = (*labels, "error_code")
        self._jobs_ended = Counter(f"{PREFIX}_jobs_ended", "Jobs that ended.", ("status", *with_code), registry=None)
        self._retries = Counter(f"{PREFIX}_retries", "Attempts followed by another.", with_code, registry=None)
        self._job_seconds = Histogram(
            f"{PREFIX}_job_seconds", "From first start to end.", labels, buckets=BUCKETS, registry=None
        )
        self._queue_seconds = Histogram(
            f"{PREFIX}_queue_seconds", "From submit to first start.", labels, buckets=BUCKETS, registry=None
        )

    def show_in_default_registry(self) -> None:
        """Let whoever serves prometheus_client's default registry serve these metrics too."""
        with contextlib.suppress(ValueError):  # They are there already.
            REGISTRY.register(self)

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
            self._queue_seconds.labels(*labels).observe(attempts[0].queue_seconds)
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
        """Yield the counts, and the figures of this moment over all executors that are open."""
        for counted in (self._jobs_ended, self._retries, self._job_seconds, self._queue_seconds):
            yield from counted.collect()
        open_ones = [stats for executor in tuple(self.executors) if (stats := executor.stats()) is not None]
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs that have not ended.", labels=("status",))
        for status in ("pending", "running", "retrying"):
            jobs.add_metric((status,), sum(getattr(stats, f"jobs_{status}") for stats in open_ones))
        yield jobs
        for name, (text, value) in _figures(open_ones).items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _figures(stats: list[ExecutorStats]) -> dict[str, tuple[str, float | None]]:
    """Return the gauges without labels by name: what each is, and its value; None where nothing is known."""
    known = [(each.memory_left_bytes, each.memory_limit_bytes) for each in stats]
    left, limit = min(
        ((left, limit) for left, limit in known if left is not None and limit),
        key=lambda pair: pair[0] / pair[1],
        default=(None, None),
    )
    longest = max((each.longest_running_seconds or 0.0 for each in stats), default=0.0)
    return {
        "jobs_near_limit": ("Jobs near their max_runtime or deadline.", sum(each.jobs_near_limit for each in stats)),
        "workers_busy": ("Workers that run a job.", sum(each.workers_busy for each in stats)),
        "abandoned_threads": ("Threads that could not be stopped.", sum(each.abandoned_threads for each in stats)),
        "quarantined_jobs": ("Jobs that killed too many workers.", sum(len(each.quarantined) for each in stats)),
        "waiting_for_memory": ("Executors held by short memory.", sum(each.waits_for_memory for each in stats)),
        "memory_left_bytes": ("Memory that is left.", left),
        "memory_limit_bytes": ("The limit of the memory that is left.", limit),
        "longest_running_seconds": ("Seconds of the longest running attempt.", longest),
    }


metrics = JobMetrics()
"""The metrics of this process, which counts each of its jobs once, wherever they are shown."""
