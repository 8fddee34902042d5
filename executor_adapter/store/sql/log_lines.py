"""Statements for the logs of jobs: read lines, add lines and drop the oldest, delete a job's lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, bindparam, delete, insert, select

from executor_adapter.store.records import MAX_LOG_LINES, LogLine
from executor_adapter.store.sql.schema import lines

_COLUMNS = (lines.c.job_id, lines.c.attempt, lines.c.seq, lines.c.at, lines.c.level, lines.c.source, lines.c.text)
"""The columns in the order of LogLine's fields."""

_newest_dropped = (
    select(lines.c.seq)
    .where(lines.c.job_id == bindparam("its_id"))
    .order_by(lines.c.seq.desc())
    .offset(MAX_LOG_LINES)
    .limit(1)
    .scalar_subquery()
)
_drop_oldest = delete(lines).where(lines.c.job_id == bindparam("its_id"), lines.c.seq <= _newest_dropped)


def read(connection: Connection, job_id: str, after: int, limit: int) -> list[LogLine]:
    """Return the job's newest `limit` lines after `after`, oldest first."""
    query = select(*_COLUMNS).where(lines.c.job_id == job_id, lines.c.seq > after)
    newest = connection.execute(query.order_by(lines.c.seq.desc()).limit(limit))
    return [LogLine(*row) for row in reversed(list(newest))]


def add(connection: Connection, added: Sequence[LogLine]) -> None:
    """Add lines, and drop all but the newest MAX_LOG_LINES of each of their jobs."""
    connection.execute(insert(lines), [asdict(line) for line in added])
    connection.execute(_drop_oldest, [{"its_id": job_id} for job_id in {line.job_id for line in added}])


def delete_of(connection: Connection, job_ids: Sequence[str]) -> None:
    """Delete all lines of these jobs."""
    connection.execute(delete(lines).where(lines.c.job_id.in_(job_ids)))
