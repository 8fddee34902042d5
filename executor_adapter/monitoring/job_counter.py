"""Counts jobs as they end; each kind of metrics records the counts in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from executor_adapter.job import TERMINAL, Job, JobStatus, Transition, storable
from executor_adapter.monitoring.gauges import Measured
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


class JobCounter(ABC):
    """An observer of executors, whose figures it also exports. `on_transition` is called on supervisors' threads."""

    def __init__(self) -> None:
        self.executors: set[Measured] = set()
        """Whose figures the gauges show."""
        self._names: set[str] = set()

    @abstractmethod
    def _ended(self, labels: JobLabels, status: str, error_code: str) -> None:
        """Count a job that ended; `error_code` is "" where there is none."""

    @abstractmethod
    def _retried(self, labels: JobLabels, error_code: str) -> None:
        """Count an attempt that is followed by another."""

    @abstractmethod
    def _took(self, labels: JobLabels, seconds: float) -> None:
        """Record the time from a job's first start to its end."""

    @abstractmethod
    def _waited(self, labels: JobLabels, seconds: float) -> None:
        """Record the time from submit to a job's first start."""

    def on_transition(self, transition: Transition) -> None:
        """Count a transition."""
        job, status = transition.job, transition.status
        if status is JobStatus.RETRYING:
            self._retried(self._labels_of(job), self._label(job.error_code or ""))
        elif status in TERMINAL:
            self._count_end(job, status)

    def _count_end(self, job: Job, status: JobStatus) -> None:
        labels, attempts = self._labels_of(job), job.state.attempts
        self._ended(labels, status.value, self._label(job.error_code or ""))
        if attempts:
            self._waited(labels, attempts[0][QUEUE_SECONDS])
        if (seconds := job.duration) is not None:
            self._took(labels, seconds)

    def _labels_of(self, job: Job) -> JobLabels:
        return JobLabels(self._label(job.job_type), self._label(job.tool_name or ""))

    def _label(self, name: str) -> str:
        name = storable(name)  # A single value that is not text would make every scrape fail.
        if name and name not in self._names:
            if len(self._names) >= MAX_LABEL_VALUES:
                return "other"
            self._names.add(name)
        return name
