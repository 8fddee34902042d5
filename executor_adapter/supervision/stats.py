"""Counts of jobs since the executor was made, and figures of the jobs that ended last."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from executor_adapter.job import Attempt, JobStatus

MAX_ENDED_JOBS = 4096
"""The number of recently ended jobs that figures are computed of: more would cost more time and add little."""

DEFAULT_WINDOW_SECONDS = 3600.0
"""The seconds that figures look back by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """Counts jobs since the executor was made and workers now, with figures of the jobs that ended within `window`.

    Shares are from 0 to 1, times are seconds; None where there is nothing to measure. The figures are of the last 4096
    jobs at most, so that computing them stays cheap.
    """

    jobs_pending: int
    """Jobs in the queue now."""
    jobs_running: int
    """Jobs that run now."""
    jobs_retrying: int
    """Jobs that wait for a retry now."""
    jobs_completed: int
    """Jobs that completed."""
    jobs_failed: int
    """Jobs that failed."""
    jobs_cancelled: int
    """Jobs that were cancelled."""
    retries: int
    """Retries that were scheduled."""
    workers_busy: int
    """Workers that run an attempt now."""
    abandoned_threads: int
    """Threads and coroutines that could not be ended at their limit and were abandoned."""
    quarantined: tuple[str, ...]
    """Ids of jobs that killed more workers than their policy allows."""
    window: float = DEFAULT_WINDOW_SECONDS
    """Seconds that the figures below look back."""
    window_jobs: int = 0
    """Jobs that completed or failed within `window`."""
    failure_rate: float | None = None
    """The share of them that failed."""
    job_seconds_mean: float | None = None
    """Seconds from a job's first start to its end, retries and their waits included."""
    job_seconds_p50: float | None = None
    """The median."""
    job_seconds_p95: float | None = None
    """The 95th percentile."""
    queue_seconds_mean: float | None = None
    """Seconds from submit to the first start."""
    queue_seconds_p95: float | None = None
    """The 95th percentile."""
    longest_running_seconds: float | None = None
    """Seconds that the oldest running attempt has run."""
    jobs_near_limit: int = 0
    """Jobs that have used most of their max_runtime or deadline, see the setting `monitoring.near_limit`."""
    waits_for_memory: bool = False
    """Whether no further attempt starts while one runs, because memory is short."""
    waiting_for_resources: int = 0
    """Jobs that do not start because other attempts hold the resources that they need."""
    memory_limit_bytes: int | None = None
    """The memory of the control group or machine in which it is scarcest; None with `executor.memory: null`."""
    memory_left_bytes: int | None = None
    """What is left of it."""

    @property
    def success_rate(self) -> float | None:
        """The share of the jobs that completed, of all that completed or failed."""
        ended = self.jobs_completed + self.jobs_failed
        return self.jobs_completed / ended if ended else None


class EndedJob(NamedTuple):
    """Describes a finished job for the figures. Times are seconds since the epoch."""

    at: float
    status: JobStatus
    started_at: float | None
    queue_seconds: float | None
    """Seconds from submit to the first start."""


QUEUE_SECONDS = [field.name for field in dataclasses.fields(Attempt)].index("queue_seconds")
"""The index of `queue_seconds` in the fields of an attempt, see JobState.attempts."""

EndedJobs = deque[tuple[float, JobStatus, float | None, float | None]]
"""The fields of EndedJob as plain tuples, since the supervisor has a few hundred nanoseconds a job for it."""


def ended_jobs() -> EndedJobs:
    """Return an empty record of ended jobs, which keeps the newest."""
    return deque(maxlen=MAX_ENDED_JOBS)


def figures(ended: EndedJobs, *, now: float, window: float) -> dict[str, Any]:
    """Return the fields of ExecutorStats about jobs that ended within `window` seconds before `now`."""
    jobs = [job for job in map(EndedJob._make, tuple(ended)) if job.at >= now - window]
    failed = sum(job.status is JobStatus.FAILED for job in jobs)
    counted = failed + sum(job.status is JobStatus.COMPLETED for job in jobs)
    took = sorted(max(0.0, job.at - job.started_at) for job in jobs if job.started_at is not None)
    waited = sorted(job.queue_seconds for job in jobs if job.queue_seconds is not None)
    return {
        "window": window,
        "window_jobs": counted,
        "failure_rate": failed / counted if counted else None,
        "job_seconds_mean": mean(took),
        "job_seconds_p50": percentile(took, 0.5),
        "job_seconds_p95": percentile(took, 0.95),
        "queue_seconds_mean": mean(waited),
        "queue_seconds_p95": percentile(waited, 0.95),
    }


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None where there are no values."""
    return math.fsum(values) / len(values) if values else None


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of all do not exceed (the nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None
