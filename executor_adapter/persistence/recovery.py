"""Recovery: jobs in a store that nobody runs are made again and run here.

A job runs again at least once: the attempt that its host's death cut off is counted as one, and the next follows
whatever its policy says. A function that ran inside the host itself (in a thread or as a coroutine) may have been what
killed it: such a death counts as a crash of the job, and past `crash_attempts` the job is quarantined.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobSerializationError
from executor_adapter.exceptions.display import shown, text_of
from executor_adapter.job.model import Attempt, Job, JobStatus
from executor_adapter.job.quarantine import MOST_QUARANTINED
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.store.base import JobFilter, JobRecord, LeaseLost, StoreUnavailable
from executor_adapter.store.records import given_fields, restore

logger = logging.getLogger("executor_adapter.store")

AT_ONCE = 100
"""Jobs that are claimed together."""


class Recovery:
    """Claims jobs on the recorder's thread and has them run: `readmit(job, seconds since it was created)`.

    `live`: the executor's jobs that are not over, by id.
    """

    def __init__(
        self,
        recorder: Recorder,
        live: Mapping[str, Job],
        quarantined: dict[str, Job],
        readmit: Callable[[Job, float], object],
    ) -> None:
        self._recorder = recorder
        self._live = live
        self._quarantined = quarantined
        self._readmit = readmit

    def __call__(self) -> list[Job]:
        """The jobs that run here from now on.

        Raises:
            StoreUnavailable, LeaseLost
        """
        store, host = self._recorder.store, self._recorder.host()
        self._know_quarantined()
        recovered: list[Job] = []
        claimed: list[JobRecord] | None = None
        while claimed is None or len(claimed) == AT_ONCE:
            claimed = store.claim(host, queue=self._recorder.queue, limit=AT_ONCE)
            recovered += [job for record in claimed if (job := self._run_again(record)) is not None]
        if recovered:
            logger.info("%d jobs that nobody ran are run here", len(recovered))
        return recovered

    def _know_quarantined(self) -> None:
        wanted = JobFilter(queue=self._recorder.queue, quarantined=True)
        for record in reversed(self._recorder.store.find(wanted, limit=MOST_QUARANTINED).records):
            if record.job_id not in self._quarantined:
                self._quarantined[record.job_id] = record.to_job()

    def _run_again(self, record: JobRecord) -> Job | None:
        if record.job_id in self._live:
            return None  # it runs here, and is recorded as this host's
        record = _cut_off(record)
        try:
            job = _pending(record)
            if _is_suspect(record) and job._live.crashes > job.policy.crash_attempts:
                self._end(record, "WORKER_CRASHED", f"its host died {record.crashes} times while it ran", True)
                self._quarantined[record.job_id] = restore(record)
                return None
            self._readmit(job, max(0.0, time.time() - record.created_at))
        except (StoreUnavailable, LeaseLost, ExecutorClosedError):
            raise
        except Exception as error:  # whatever it is: one job must not keep the others from being run
            explained = isinstance(error, (InvalidJobError, JobSerializationError, ValueError))
            why = text_of(error) if explained else shown(error)
            self._end(record, "CONFIGURATION_ERROR", f"its host is gone, and it cannot run here: {why}", False)
            return None
        return job

    def _end(self, record: JobRecord, code: str, message: str, quarantine: bool) -> None:
        logger.error("job %s: %s", record.job_id, message, extra={"job_id": record.job_id})
        self._recorder.end(
            replace(
                record,
                status=JobStatus.FAILED,
                completed_at=time.time(),
                error_code=code,
                error_message=message,
                quarantined=quarantine,
            )
        )


def _is_suspect(record: JobRecord) -> bool:
    return record.crashes > 0


def _cut_off(record: JobRecord) -> JobRecord:
    """With the attempt that ran when its host died as one that is over."""
    if record.status is not JobStatus.RUNNING:
        return record
    pool = given_fields(record).get("pool", "auto") if record.call is not None else ""
    attempt = Attempt(
        number=record.attempt,
        pool=pool,
        pid=None,
        queue_seconds=0.0,
        run_seconds=0.0,
        error_code="WORKER_CRASHED",
        error_message="its host died",
    )
    fields = tuple(getattr(attempt, field.name) for field in dataclasses.fields(attempt))
    crashes = record.crashes + (pool != "process")
    return replace(record, attempt_fields=(*record.attempt_fields, fields), crashes=crashes)


def _pending(record: JobRecord) -> Job:
    """
    Raises:
        ValueError: its function is not stored, or not to be had here, or it is none that could ever run.
    """
    Job(**given_fields(record))
    job = restore(replace(record, status=JobStatus.PENDING, progress=None))
    if record.started_at is not None:
        job.queue_timeout = None  # it did start in time
    return job
