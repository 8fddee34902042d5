"""The statements by which hosts write their jobs: compiled once, since nothing else is done as often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, bindparam, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.store.base import JobRecord
from executor_adapter.store.sql.rows import FIXED, changing_row_of, row_of
from executor_adapter.store.sql.schema import jobs

_WRITTEN = [column.name for column in jobs.columns if column.name != "cancel_requested"]
_CHANGING = [name for name in _WRITTEN if name not in FIXED]


class Writing:
    """Writes records of new jobs, and what has changed of known ones, where they are the host's."""

    def __init__(self, dialect: Dialect) -> None:
        flavour = sqlite if dialect.name == "sqlite" else postgresql
        new = flavour.insert(jobs).values({name: bindparam(name) for name in _WRITTEN})
        # A known id: the job is the host's own, or one that was over before this one was made.
        self._new = new.on_conflict_do_update(
            index_elements=["job_id"],
            set_={name: new.excluded[name] for name in _WRITTEN} | {"cancel_requested": False},
            where=or_(
                jobs.c.host == bindparam("me"),
                jobs.c.completed_at.is_not(None) & (jobs.c.created_at < new.excluded.created_at),
            ),
        )
        self._known = (
            update(jobs)
            .where(jobs.c.job_id == bindparam("its_id"), jobs.c.host == bindparam("me"))
            .values({name: bindparam(name) for name in _CHANGING})
        )

    def write(
        self, connection: Connection, host_id: str, new: Sequence[JobRecord], changed: Sequence[JobRecord]
    ) -> list[str]:
        """The ids of those that are another host's by now, and stay as they are."""
        written = self._run(connection, self._new, [row_of(record) | {"me": host_id} for record in new])
        written += self._run(connection, self._known, [_changes(record, host_id) for record in changed])
        return [] if written == len(new) + len(changed) else _taken(connection, (*new, *changed))

    def _run(self, connection: Connection, statement: Any, rows: list[dict[str, Any]]) -> int:
        if not rows:
            return 0
        return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def _changes(record: JobRecord, host_id: str) -> dict[str, Any]:
    row = changing_row_of(record)
    row["its_id"] = row.pop("job_id")
    return row | {"me": host_id}


def _taken(connection: Connection, records: Iterable[JobRecord]) -> list[str]:
    expected = {record.job_id: record.host for record in records}
    query = select(jobs.c.job_id, jobs.c.host).where(jobs.c.job_id.in_(expected))
    found = {row.job_id: row.host for row in connection.execute(query)}
    return [job_id for job_id, host in expected.items() if job_id not in found or found[job_id] != host]
