"""Recovery: claims the stored jobs that no host runs, and runs them here.

A job runs again at least once: the attempt that its host's death interrupted counts as one attempt, and another one
follows regardless of its policy. A function that ran inside the host's own process, in a thread or as a coroutine, may
have killed the host: such a death counts as a crash of the job, and past `crash_attempts` the job is quarantined.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobSerializationError
from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.job import (
    LEASING_POOLS,
    MAX_QUARANTINED,
    PROCESS_POOLS,
    Attempt,
    Job,
    JobStatus,
    checked_resources,
)
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.persistence.stored_functions import StoredFunctions
from executor_adapter.store import (
    JobFilter,
    JobRecord,
    LeaseLostError,
    StoreUnavailableError,
    Unpickle,
    call_fields,
    given_fields,
    restore,
)

logger = logging.getLogger("executor_adapter.store")

CLAIM_SIZE = 100
"""Jobs that are claimed in one transaction."""
MAX_REFUSALS_LOGGED = 10_000
"""Refused jobs that are remembered, so that each is logged once."""


class Recovery:
    """Claims jobs on the recorder's thread and submits them to its executor.

    Args:
        recorder: the recorder, whose host claims the jobs.
        live: the executor's live jobs by id.
        quarantined: the executor's quarantined jobs by id; those of the store are added.
        readmit: submits a job again, given the seconds since it was created.
        functions: decides which jobs may run here; all others are left in the store.
        lack_of_pool: returns in words what a pool needs and is not here; jobs of such pools are left as well, for
            a host that has it.
        lack_of: returns in words what this executor lacks of such `resources`; jobs that need more are left too.
    """

    def __init__(
        self,
        recorder: Recorder,
        live: Mapping[str, Job],
        quarantined: dict[str, Job],
        readmit: Callable[[Job, float], object],
        functions: StoredFunctions,
        lack_of_pool: Callable[[str], str | None],
        lack_of: Callable[[Mapping[str, float]], str | None],
    ) -> None:
        self._functions = functions
        self._lack_of_pool = lack_of_pool
        self._lack_of = lack_of
        self._refused: dict[str, None] = {}
        """The ids of jobs whose refusal was logged, the newest."""
        self._recorder = recorder
        self._live = live
        self._quarantined = quarantined
        self._readmit = readmit

    def run(self) -> list[Job]:
        """Claim the jobs that no host runs; return those that run here from now on.

        Raises:
            StoreUnavailableError, LeaseLostError: the jobs claimed by then run here; the others wait.
        """
        store, host = self._recorder.store, self._recorder.host()
        self._load_quarantined()
        recovered: list[Job] = []
        claimed: list[JobRecord] | None = None
        while claimed is None or len(claimed) == CLAIM_SIZE or self._functions.import_unknown():
            claimed = store.claim(host, queue=self._recorder.queue, limit=CLAIM_SIZE, refuse=self._refuse)
            recovered += [job for record in claimed if (job := self._run_again(record)) is not None]
        if recovered:
            logger.info("recovered %d jobs that no host ran", len(recovered))
        return recovered

    def _refuse(self, record: JobRecord) -> str | None:
        reason = self._functions.refusal(record, may_import=False) or self._lack_of_pool(_pool_of(record))
        if reason is None and (resources := _resources_of(record)) is not None:
            reason = self._lack_of(resources)
        if reason and record.job_id not in self._refused:
            if len(self._refused) >= MAX_REFUSALS_LOGGED:
                del self._refused[next(iter(self._refused))]
            self._refused[record.job_id] = None
            message = "job %s of the store is left there and does not run: %s"
            logger.warning(message, record.job_id, reason, extra={"job_id": record.job_id})
        return reason

    def _load_quarantined(self) -> None:
        wanted = JobFilter(queue=self._recorder.queue, quarantined=True)
        for record in reversed(self._recorder.store.find(wanted, limit=MAX_QUARANTINED).records):
            if record.job_id not in self._quarantined:
                self._quarantined[record.job_id] = self._functions.to_job(record)

    def _run_again(self, record: JobRecord) -> Job | None:
        if record.job_id in self._live:
            return None  # The claim made it this host's again, and it runs here already.
        try:
            record = _with_attempt_cut_off(record)
            job = _pending_job(record, self._functions.unpickle)
            if record.crashes > 0 and record.crashes > job.policy.crash_attempts:
                self._end(record, "WORKER_CRASHED", f"its host died {record.crashes} times while it ran", True)
                self._quarantined[record.job_id] = self._functions.to_job(record)
                return None
            self._readmit(job, max(0.0, time.time() - record.created_at))
        except (StoreUnavailableError, LeaseLostError, ExecutorClosedError):
            raise
        except BaseException as error:  # One job must not keep the others from running.
            explained = isinstance(error, (InvalidJobError, JobSerializationError, ValueError))
            why = text_of(error) if explained else repr_of(error)
            code = "CONFIGURATION_ERROR" if record.unreadable is None else "DATA_ERROR"
            self._end(record, code, f"its host has died, and it cannot run here: {why}", False)
            return None
        return job

    def _end(self, record: JobRecord, code: str, message: str, quarantine: bool) -> None:
        logger.error("job %s: %s", record.job_id, message, extra={"job_id": record.job_id})
        self._recorder.write_end(
            replace(
                record,
                status=JobStatus.FAILED,
                completed_at=time.time(),
                error_code=code,
                error_message=message,
                quarantined=quarantine,
            )
        )


def _resources_of(record: JobRecord) -> dict[str, float] | None:
    """Return what each attempt takes of its host; None for nothing, or where the row makes no sense."""
    if _pool_of(record) in LEASING_POOLS:
        return None
    try:
        return checked_resources(call_fields(record).get("resources") or {})
    except ValueError:
        return None


def _pool_of(record: JobRecord) -> str:
    """Return the name of the job's pool; empty where it was driven from outside, or the row makes no sense."""
    try:
        return str(call_fields(record).get("pool", "auto"))
    except ValueError:
        return ""


def _with_attempt_cut_off(record: JobRecord) -> JobRecord:
    """Return the record with the attempt that ran when its host died as a finished one."""
    if record.status is not JobStatus.RUNNING:
        return record
    pool = _pool_of(record)
    attempt = Attempt(
        number=record.attempt,
        pool=pool,
        pid=None,
        queue_seconds=0.0,
        run_seconds=0.0,
        error_code="WORKER_CRASHED",
        error_message="its host died",
    )
    values = tuple(getattr(attempt, field.name) for field in fields(attempt))
    crashes = record.crashes + (pool not in PROCESS_POOLS)
    return replace(record, attempt_fields=(*record.attempt_fields, values), crashes=crashes)


def _pending_job(record: JobRecord, unpickle: Unpickle | None) -> Job:
    """Return the job as PENDING, ready to be submitted.

    Raises:
        ValueError: its function is not stored or cannot be imported here, or the job could never run.
    """
    Job(**given_fields(record, unpickle))
    if record.attempt == 0:  # What may be shown there is why another host, or this one before, left it.
        record = replace(record, error_code=None, error_message=None)
    job = restore(replace(record, status=JobStatus.PENDING, progress=None), unpickle)
    if record.started_at is not None:
        job.queue_timeout = None  # Its first attempt did start in time.
    return job
