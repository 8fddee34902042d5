"""The jobs that killed more workers than their policy allows."""

from __future__ import annotations

import logging

from executor_adapter.job.model import Job

logger = logging.getLogger("executor_adapter")

MOST_QUARANTINED = 256
"""Jobs that are held, arguments and all, so that they can be run again once they are released."""


class Quarantine(dict[str, Job]):
    """Them by id, the newest MOST_QUARANTINED. One that was pushed out is known no more: its id may be submitted again
    without a release, which the log says. A store that outlives the program remembers it all the same."""

    def __setitem__(self, job_id: str, job: Job) -> None:
        self.pop(job_id, None)  # one that comes again is the newest
        super().__setitem__(job_id, job)
        if len(self) > MOST_QUARANTINED:
            oldest = next(iter(self))
            if self.pop(oldest, None) is not None:
                logger.warning(
                    "%d jobs are in quarantine: the oldest is let go of: release some, or find out what kills workers",
                    MOST_QUARANTINED,
                    extra={"job_id": oldest},
                )
