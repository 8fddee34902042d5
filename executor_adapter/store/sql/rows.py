"""Converts records to rows and rows to records."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import RowMapping

from executor_adapter.job import Attempt, JobStatus, Progress, storable
from executor_adapter.store.records import JobRecord

logger = logging.getLogger("executor_adapter.store")

MAX_SHOWN = 60
"""Characters of a value that makes no sense which are shown."""
MAX_REPORTED = 1000
_reported: set[str] = set()
"""Jobs whose unreadable rows are logged already."""
_KNOWN = frozenset(status.value for status in JobStatus)

MAX_ERROR_LENGTH = 10_000
"""Characters that are stored of an error's message."""
MAX_INTEGER = 2**63 - 1
"""The largest integer that a column holds; a larger one is stored as this."""

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
        "priority": _storable_integer(record.priority),
        "max_runtime": record.max_runtime,
        "call": record.call,
        "pickled": record.pickled,
        "retry_of": _text(record.retry_of),
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
        "error_code": _text(record.error_code),
        "error_message": _error_text(record.error_message),
        "traceback": _text(record.traceback),
        "records_processed": None if record.records_processed is None else _storable_integer(record.records_processed),
        "progress": None if record.progress is None else _dump(record.progress),
        "attempts": json.dumps(list(map(_attempt, record.attempts))) if record.attempts else "[]",
        "host": record.host,
        "quarantined": record.quarantined,
    }


def record_of(row: RowMapping) -> JobRecord:
    """Return the record of a row with all columns; one that is unreadable where a column makes no sense."""
    fields: dict[str, Any] = {str(name): value for name, value in row.items() if name != "cancel_requested"}
    faults = []
    for name, (read, fallback) in _READ.items():
        try:
            fields[name] = read(fields[name])
        except Exception:  # Whatever another program wrote there.
            faults.append(f"{name} is {str(fields[name])[:MAX_SHOWN]!r}")
            fields[name] = fallback
    return JobRecord(**fields) if not faults else _unreadable(fields, faults)


def _attempts(text: str) -> tuple[Attempt, ...]:
    """Read the stored attempts; another version may have written more or fewer fields at the end of each."""
    return tuple(Attempt(*fields[: len(Attempt._fields)]) for fields in json.loads(text))


def _progress(text: str | None) -> Progress | None:
    return None if text is None else Progress(*json.loads(text))


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if type(found) is not dict:
        raise ValueError("it is not a JSON object")
    return found


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("it is no whole number")
    return value


def _time(value: Any) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError("it is no number")
    return value


def _time_or_none(value: Any) -> float | None:
    return None if value is None else _time(value)


_READ: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "status": (JobStatus, JobStatus.FAILED),
    "attempts": (_attempts, ()),
    "progress": (_progress, None),
    "metadata": (_object, {}),
    "quarantined": (bool, False),
    "created_at": (_time, 0.0),
    **dict.fromkeys(("attempt", "crashes", "priority"), (_integer, 0)),
    **dict.fromkeys(("started_at", "completed_at", "retry_at", "max_runtime"), (_time_or_none, None)),
}
"""How each column is read that may not make sense, and what stands for it then. SQLite keeps whatever was written."""


def _unreadable(fields: dict[str, Any], faults: Sequence[str]) -> JobRecord:
    """Return a record for a row that makes no sense: it keeps what can be read, and says what cannot."""
    job_id = fields["job_id"]
    message = f"its row in the store cannot be read: {', '.join(faults)}: it is set aside, and never runs"
    if job_id not in _reported:
        if len(_reported) < MAX_REPORTED:
            _reported.add(job_id)
        logger.error("job %s: %s", job_id, message, extra={"job_id": job_id})
    shown = {"status": JobStatus.FAILED, "error_code": "DATA_ERROR", "error_message": message, "unreadable": message}
    return JobRecord(**fields | shown)


def count_of_statuses(counted: Iterable[tuple[str, int]]) -> dict[JobStatus, int]:
    """Return the number of jobs by status; those of an unknown status are unreadable, and count as FAILED."""
    counts = dict.fromkeys(JobStatus, 0)
    for status, count in counted:
        counts[JobStatus(status) if status in _KNOWN else JobStatus.FAILED] += count
    return counts


def _storable_integer(value: int) -> int:
    return value if -MAX_INTEGER <= value <= MAX_INTEGER else MAX_INTEGER if value > 0 else -MAX_INTEGER


def _text(text: str | None) -> str | None:
    return None if text is None else storable(text)


def _error_text(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_ERROR_LENGTH:
        text = f"{text[:MAX_ERROR_LENGTH]}... ({len(text):,} characters)"
    return _text(text)


def _attempt(attempt: Attempt) -> Attempt:
    """Return an attempt in its stored form."""
    text = attempt.error_message
    return attempt if text is None else attempt._replace(error_message=_error_text(text))


def _dump(progress: Progress) -> str:
    return json.dumps([progress.done, progress.total, progress.message])
