"""Handover: stops jobs here that another host runs now, or may run soon."""

from __future__ import annotations

import logging

from executor_adapter.job import TERMINAL, Job
from executor_adapter.persistence.pending_writes import PendingWrites
from executor_adapter.supervision import Supervisor

logger = logging.getLogger("executor_adapter.store")


class Handover:
    """Ends this executor's jobs when its lease is about to expire or was taken. For the recorder's thread only."""

    def __init__(self, supervisor: Supervisor, pending: PendingWrites) -> None:
        self.recovery_is_due = False
        """Whether to look for jobs that were handed over but that perhaps no host took."""
        self._supervisor = supervisor
        self._pending = pending
        self._stopping: list[Job] = []
        """Jobs that others may run, and of which an attempt may still run here."""

    def before_expiry(self, store_url: str, seconds: float) -> None:
        """Stop all stored jobs in time: the store was not written for `seconds`, and another host may soon run them."""
        known = self._known_jobs()
        if known and not self.recovery_is_due:
            self.recovery_is_due = True
            text = "%s could not be written for %.0f s, so the lease on it ends: %d jobs are stopped here and run again"
            logger.error(text, store_url, seconds, len(known))
            self._pending.requeue(known)
            self._stop(known)

    def after_loss(self) -> None:
        """Stop all stored jobs: another host has taken the lease, and perhaps the jobs."""
        if known := self._known_jobs():
            self.recovery_is_due = True
            self.give_away(known)

    def give_away(self, jobs: list[Job]) -> None:
        """Stop jobs that another host has taken over, and record nothing more of them."""
        ended = self._pending.disown(jobs)
        live = [job for job in jobs if job.status not in TERMINAL]
        logger.warning(
            "another host has taken over %d jobs: %d are stopped here, %d had finished here and may run twice",
            len(jobs),
            len(live),
            ended,
        )
        self._stop(live)

    def is_stopping(self) -> bool:
        """Return whether a job that was handed over still runs here.

        If it were claimed now, it would be ignored as a job that is live here, and then be lost.
        """
        live = self._supervisor.intake.jobs
        self._stopping = [job for job in self._stopping if live.get(job.job_id) is job]
        return bool(self._stopping)

    def _known_jobs(self) -> list[Job]:
        return self._pending.known_to_store(list(self._supervisor.intake.jobs.values()))

    def _stop(self, jobs: list[Job]) -> None:
        self._stopping += jobs
        for job in jobs:
            self._supervisor.release_job(job)
