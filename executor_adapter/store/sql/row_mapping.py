"""Converts records to rows and rows to records."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import RowMapping

from executor_adapter.job import JobStatus, Progress, storable
from executor_adapter.store.records import JobRecord

FIXED = frozenset({"job_id", "queue", "job_type", "tool_name", "function", "created_at", "metadata", "call", "pickled"})
FIXED |= {"priority", "max_runtime", "retry_of"}
"""Columns that never change while a job lives, and are written once."""


def row_of(record: JobRecord) -> dict[str, Any]:
    """Return all columns that a host writes."""
    return changing_row_of(record) | {
        "queue": record.queue,
        "job_type": record.job_type,
        "tool_name": record.tool_name,
        "function": record.function,
        "created_at": record.created_at,
        "metadata": json.dumps(dict(record.metadata)) if record.metadata else "{}",
        "priority": record.priority,
        "max_runtime": record.max_runtime,
        "call": record.call,
        "pickled": record.pickled,
        "retry_of": record.retry_of,
    }


def changing_row_of(record: JobRecord) -> dict[str, Any]:
    """Return the job's id and the columns that change while it lives."""
    return {
        "job_id": record.job_id,
        "status": record.status.value,
        "attempt": record.attempt,
        "crashes": record.crashes,
        "started_at": record.started_at,
        "completed_at": record.completed_at,
        "retry_at": record.retry_at,
        "error_code": record.error_code,
        "error_message": None if record.error_message is None else storable(record.error_message),
        "records_processed": record.records_processed,
        "progress": None if record.progress is None else _dump(record.progress),
        "attempts": json.dumps(record.attempt_fields) if record.attempt_fields else "[]",
        "host": record.host,
        "quarantined": record.quarantined,
    }


def record_of(row: RowMapping) -> JobRecord:
    """Return the record of a row with all columns."""
    fields: dict[str, Any] = {str(name): value for name, value in row.items() if name != "cancel_requested"}
    progress, attempts = fields["progress"], json.loads(fields.pop("attempts"))
    return JobRecord(
        **fields
        | {
            "status": JobStatus(fields["status"]),
            "progress": None if progress is None else Progress(*json.loads(progress)),
            "attempt_fields": tuple(map(tuple, attempts)),
            "metadata": json.loads(fields["metadata"]),
            "quarantined": bool(fields["quarantined"]),
        }
    )


def _dump(progress: Progress) -> str:
    return json.dumps([progress.done, progress.total, progress.message])
