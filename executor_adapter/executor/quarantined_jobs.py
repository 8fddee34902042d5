"""The jobs of an executor that killed more workers than their policy allows."""

from __future__ import annotations

from collections.abc import Iterable

from executor_adapter.job import Job
from executor_adapter.persistence import JobPersistence
from executor_adapter.supervision import Supervisor


class QuarantinedJobs:
    """Gives an executor the methods about its quarantined jobs."""

    _supervisor: Supervisor
    _persistence: JobPersistence | None

    def quarantined(self) -> list[Job]:
        """Return the jobs that killed more workers than their policy allows: they need `release` to be submitted again.

        Holds the newest `quarantine.MAX_QUARANTINED`; with each further one the oldest is evicted.
        """
        return list(self._supervisor.intake.quarantined.values())

    def quarantine(self, jobs: Iterable[Job]) -> None:
        """Hold these jobs in quarantine, as an earlier executor of the same queue did."""
        self._supervisor.intake.quarantined.update({job.job_id: job for job in jobs})

    def release(self, job_id: str) -> bool:
        """Let a quarantined job be submitted again. Return False where no quarantined job has this id."""
        self._supervisor.check_not_forked()
        released = self._supervisor.intake.quarantined.pop(job_id, None) is not None
        return (self._persistence is not None and self._persistence.release(job_id)) or released
