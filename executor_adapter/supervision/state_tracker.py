"""Counts the jobs in each state, and notifies the observers of every transition."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from executor_adapter.job import Job, JobStatus, Observer, Transition
from executor_adapter.supervision.stats import QUEUE_SECONDS, ended_jobs

logger = logging.getLogger("executor_adapter")


class StateTracker:
    """Writes each transition into its job, counts it and notifies the observers, in order. Supervisor thread only."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)
        self.counts: dict[JobStatus, int] = dict.fromkeys(JobStatus, 0)
        self.retries = 0
        self.ended = ended_jobs()

    def enter(self, job: Job) -> None:
        """Count a new job as PENDING."""
        self.counts[JobStatus.PENDING] += 1
        if self.observers:
            self._notify(job, None, JobStatus.PENDING, None)

    def advance(
        self,
        job: Job,
        status: JobStatus,
        error: BaseException | None = None,
        *,
        attempt: int | None = None,
        retry_at: float | None = None,
        records_processed: int | None = None,
    ) -> None:
        """Let the job enter `status`, as `Job.advance` does; `error` is why, where an attempt failed.

        Raises:
            InvalidJobError: the transition is not legal.
        """
        previous = job.state.status
        job.advance(status, attempt=attempt, retry_at=retry_at, records_processed=records_processed)
        self.counts[previous] -= 1
        self.counts[status] += 1
        state = job.state
        if status is JobStatus.RETRYING:
            self.retries += 1
        elif state.completed_at is not None:
            waited = state.attempts[0][QUEUE_SECONDS] if state.attempts else None
            self.ended.append((state.completed_at, status, state.started_at, waited))
        if self.observers:
            self._notify(job, previous, status, error)

    def _notify(self, job: Job, previous: JobStatus | None, status: JobStatus, error: BaseException | None) -> None:
        transition = Transition(job, previous, status, time.time(), job.state.attempt, error)
        for observer in tuple(self.observers):
            try:
                observer(transition)
            except BaseException:  # SystemExit too: otherwise a caller that waits for the job would wait forever.
                logger.exception("an observer failed", extra={"job_id": job.job_id})
