"""Writes records that a store cannot hold as they are: their status and times alone."""

from __future__ import annotations

import dataclasses
import logging

from executor_adapter.persistence.pending_writes import WriteBatch
from executor_adapter.store import JobRecord, JobStore, LeaseLostError, StoreUnavailableError

logger = logging.getLogger("executor_adapter.store")


def write_plain(store: JobStore, host_id: str, batch: WriteBatch, *, lease: float) -> None:
    """Write the one record of `batch` in a form that each store holds: without it, a job that has ended runs again.

    Call it where the exception is handled with which the store has refused the record.

    Raises:
        StoreUnavailableError, LeaseLostError: it is not written.
    """
    job_id = batch.jobs[0].job_id
    logger.exception("the record of job %r cannot be stored as it is", job_id, extra={"job_id": job_id})
    try:
        new, changed = (list(map(_plain, records)) for records in (batch.new, batch.changed))
        store.write(host_id, new, changed, lease=lease)
    except (StoreUnavailableError, LeaseLostError):
        raise
    except Exception:
        logger.exception("a change of job %r is not in the store: it may run again", job_id)


def _plain(record: JobRecord) -> JobRecord:
    """Return the record with nothing that its function made or its caller gave."""
    note = None if record.error_code is None else "the error cannot be stored: the log of its program has it"
    return dataclasses.replace(
        record,
        error_message=note,
        traceback=None,
        records_processed=None,
        progress=None,
        attempt_fields=(),
        metadata={},
    )
