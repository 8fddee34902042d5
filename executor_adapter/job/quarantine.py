"""The jobs that killed more workers than their policy allows."""

from __future__ import annotations

import logging

from executor_adapter.job.model import Job

logger = logging.getLogger("executor_adapter")

MAX_QUARANTINED = 256
"""Jobs are kept with their arguments, so that they can run again once they are released."""


class Quarantine(dict[str, Job]):
    """Holds the quarantined jobs by id.

    Keeps the newest MAX_QUARANTINED. Older entries are evicted with a warning, and can be submitted again without a
    release. A store that outlives the program remembers them all the same.
    """

    def __setitem__(self, job_id: str, job: Job) -> None:
        self.pop(job_id, None)  # A job that is quarantined again becomes the newest.
        super().__setitem__(job_id, job)
        if len(self) > MAX_QUARANTINED:
            oldest = next(iter(self))
            self.pop(oldest, None)  # Another thread may have released it just now.
            logger.warning(
                "%d jobs are in quarantine: the oldest is evicted: release some, or find out what kills workers",
                MAX_QUARANTINED,
                extra={"job_id": oldest},
            )
