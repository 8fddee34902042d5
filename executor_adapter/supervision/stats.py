"""Counts of jobs since the executor was made, and figures of those that ended last."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from executor_adapter.job.results import Attempt
from executor_adapter.job.status import JobStatus

KEPT = 4096
"""Jobs that ended last and are looked at. A longer memory would cost more to look at, and hardly say more."""

WINDOW = 3600.0
"""Seconds that figures look back unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """Counts of jobs since the executor was made, of workers now, and figures of jobs that ended within `window`.

    Shares are from 0 to 1, times in seconds; None where there is nothing to tell of. The figures are of the last 4096
    jobs at most, so that asking for them stays cheap.
    """

    jobs_pending: int
    """The depth of the queue."""
    jobs_running: int
    jobs_retrying: int
    jobs_completed: int
    jobs_failed: int
    jobs_cancelled: int
    retries: int
    workers_busy: int
    abandoned_threads: int
    """Threads and coroutines that could not be ended at their limit and were written off."""
    quarantined: tuple[str, ...]
    """Ids of jobs that killed more workers than their policy allows."""
    window: float = WINDOW
    window_jobs: int = 0
    """Jobs that completed or failed within it."""
    failure_rate: float | None = None
    """The share of those that failed."""
    job_seconds_mean: float | None = None
    """From a job's first start to its end, retries and their waits included."""
    job_seconds_p50: float | None = None
    job_seconds_p95: float | None = None
    queue_seconds_mean: float | None = None
    """From submit to the first start."""
    queue_seconds_p95: float | None = None
    longest_running_seconds: float | None = None
    """Of the attempts under way, how long the oldest has run."""

    @property
    def success_rate(self) -> float | None:
        """Of all jobs that completed or failed, the share that completed."""
        ended = self.jobs_completed + self.jobs_failed
        return self.jobs_completed / ended if ended else None


class EndedJob(NamedTuple):
    """What is kept of a job that is over. Wall-clock times."""

    at: float
    status: JobStatus
    started_at: float | None
    queue_seconds: float | None
    """From submit to the first start."""

    @property
    def job_seconds(self) -> float | None:
        return None if self.started_at is None else max(0.0, self.at - self.started_at)


QUEUE_SECONDS = [field.name for field in dataclasses.fields(Attempt)].index("queue_seconds")
"""Where the record of an attempt has them, see LiveState.attempts."""

EndedJobs = deque[tuple[float, JobStatus, float | None, float | None]]
"""Filled by the supervisor with EndedJob's fields as plain tuples: it has a few hundred nanoseconds a job for it."""


def ended_jobs() -> EndedJobs:
    return deque(maxlen=KEPT)


def figures(ended: EndedJobs, *, now: float, window: float) -> dict[str, Any]:
    """The fields of ExecutorStats that are about jobs which ended within `window` seconds before `now`."""
    jobs = [job for job in map(EndedJob._make, tuple(ended)) if job.at >= now - window]
    failed = sum(job.status is JobStatus.FAILED for job in jobs)
    counted = failed + sum(job.status is JobStatus.COMPLETED for job in jobs)
    took = sorted(seconds for job in jobs if (seconds := job.job_seconds) is not None)
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
    return math.fsum(values) / len(values) if values else None


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed (the nearest rank)."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else None
