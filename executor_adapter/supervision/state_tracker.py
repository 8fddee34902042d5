"""The tracker: how many jobs are in which state, and who is told when one enters another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from executor_adapter.job.model import Job
from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.supervision.stats import QUEUE_SECONDS, ended_jobs

logger = logging.getLogger("executor_adapter")

Observer = Callable[[Transition], None]


class StateTracker:
    """Writes each transition into its job, counts it and tells the observers, in order. The supervisor's own."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self.observers = list(observers)
        self.counts: dict[JobStatus, int] = dict.fromkeys(JobStatus, 0)
        self.retries = 0
        self.ended = ended_jobs()

    def enter(self, job: Job) -> None:
        """The job is PENDING, from now on."""
        self.counts[JobStatus.PENDING] += 1
        if self.observers:
            self._tell(job, None, JobStatus.PENDING, None)

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
            InvalidJobError: no legal transition leads there.
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
            self._tell(job, previous, status, error)

    def _tell(self, job: Job, previous: JobStatus | None, status: JobStatus, error: BaseException | None) -> None:
        told = Transition(job, previous, status, time.time(), job.state.attempt, error)
        for observer in tuple(self.observers):
            try:
                observer(told)
            except BaseException:  # SystemExit too: who waits for the job would wait for ever
                logger.exception("an observer failed", extra={"job_id": job.job_id})
