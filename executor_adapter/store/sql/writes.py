"""The statements with which hosts write their jobs, compiled once because nothing else runs as often."""

from __future__ import annotations

import base64
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Dialect, Text, bindparam, column, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.store.records import JobRecord
from executor_adapter.store.sql.queries import has_lost_host
from executor_adapter.store.sql.rows import FIXED, changing_row_of, row_of
from executor_adapter.store.sql.schema import jobs

_WRITTEN = [column.name for column in jobs.columns if column.name != "cancel_requested"]
ROWS_PER_STATEMENT = 50
"""Rows that one statement inserts into SQLite."""
_CHANGING = [name for name in _WRITTEN if name not in FIXED]


class JobWriter:
    """Writes new and changed records, where no other host has the job."""

    def __init__(self, dialect: Dialect) -> None:
        self._statements = _RowStatements() if dialect.name == "sqlite" else _SetStatements()

    def write(
        self, connection: Connection, host_id: str, new: Sequence[JobRecord], changed: Sequence[JobRecord]
    ) -> list[str]:
        """Write the records; return the ids of jobs that belong to another host by now, which stay as they are."""
        # The last record of each id: one statement can change a row only once.
        new_rows = {record.job_id: row_of(record) for record in new}
        changed_rows = {record.job_id: changing_row_of(record) for record in changed}
        written = self._statements.update(connection, list(changed_rows.values()), host_id)
        written += self._statements.insert(connection, list(new_rows.values()), host_id)
        is_all = written == len(new_rows) + len(changed_rows)
        return [] if is_all else _ids_of_other_hosts(connection, (*new, *changed))


def _on_conflict(new: Any) -> dict[str, Any]:
    """Return what to do with a new job whose id is known.

    The row is replaced if it is this host's own, or of another job, which has finished or was left in this queue by a
    host that is gone. A host that repeats a write may find its own job finished by the host that took it over: their
    `created_at` is the same.
    """
    is_left = has_lost_host & (jobs.c.queue == new.excluded.queue)
    return {
        "index_elements": ["job_id"],
        "set_": {name: new.excluded[name] for name in _WRITTEN} | {"cancel_requested": false()},
        "where": or_(
            jobs.c.host == bindparam("me"),
            or_(jobs.c.completed_at.is_not(None), is_left) & (jobs.c.created_at != new.excluded.created_at),
        ),
    }


class _RowStatements:
    """Writes rows to SQLite, ROWS_PER_STATEMENT new ones at a time.

    Its driver releases the GIL for each execution, and may have to wait to get it back while jobs run. PostgreSQL is
    slow with many parameters, see `_SetStatements`.
    """

    def __init__(self) -> None:
        new = sqlite.insert(jobs).values({name: bindparam(name) for name in _WRITTEN})
        mine = (jobs.c.job_id == bindparam("its_id"), jobs.c.host == bindparam("me"))
        known = update(jobs).where(*mine).values({name: bindparam(name) for name in _CHANGING})
        self._new, self._pick_new = _compiled(new.on_conflict_do_update(**_on_conflict(new)))
        self._known, self._pick_known = _compiled(known)
        place = self._new[self._new.index("VALUES ") + len("VALUES ") : self._new.index(" ON CONFLICT")]
        self._many = self._new.replace(place, ", ".join([place] * ROWS_PER_STATEMENT))

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Insert new jobs; return how many rows were written."""
        picked = [self._pick_new(row) for row in rows]
        written = 0
        while len(picked) >= ROWS_PER_STATEMENT:
            some, picked = picked[:ROWS_PER_STATEMENT], picked[ROWS_PER_STATEMENT:]
            written += connection.exec_driver_sql(self._many, (*itertools.chain.from_iterable(some), me)).rowcount
        return written + _execute(connection, self._new, picked, me)

    def update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Update known jobs; return how many rows were written."""
        return _execute(
            connection, self._known, [self._pick_known(row | {"its_id": row["job_id"]}) for row in rows], me
        )


def _compiled(statement: Any) -> tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]]:
    """Return a statement as SQLite's driver takes it, and what picks its parameters of a row; the last one is `me`."""
    # Parameters by position, because the driver takes those without a conversion.
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="qmark"))
    return str(compiled), operator.itemgetter(*(name for name in compiled.positiontup if name != "me"))


def _execute(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]], me: str) -> int:
    return connection.exec_driver_sql(statement, [(*row, me) for row in rows]).rowcount if rows else 0


class _SetStatements:
    """Writes many rows with one statement of PostgreSQL, which takes them as one JSON document and expands it.

    One execution for each row would cost both sides about twice as much, however the executions are sent. There are two
    statements, for new jobs and for changed ones.
    """

    def __init__(self) -> None:
        given = _given(_WRITTEN)
        new = postgresql.insert(jobs).from_select(_WRITTEN, select(*(_value(given, name) for name in _WRITTEN)))
        self._new = new.on_conflict_do_update(**_on_conflict(new))
        given = _given(["job_id", *_CHANGING])
        mine = (jobs.c.job_id == given.c.job_id, jobs.c.host == bindparam("me"))
        self._known = update(jobs).where(*mine).values({name: given.c[name] for name in _CHANGING if name != "job_id"})

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Insert new jobs; return how many rows were written."""
        return _run(connection, self._new, [_as_json(row) for row in rows], me)

    def update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Update known jobs; return how many rows were written."""
        return _run(connection, self._known, rows, me)


def _given(names: Sequence[str]) -> Any:
    columns = [column(name, Text() if name == "pickled" else jobs.c[name].type) for name in names]
    rows = func.json_to_recordset(bindparam("given", type_=JSON))
    return rows.table_valued(*columns).render_derived("given", with_types=True)


def _value(given: Any, name: str) -> Any:
    return func.decode(given.c.pickled, "base64") if name == "pickled" else given.c[name]


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    pickled = row["pickled"]
    return row if pickled is None else row | {"pickled": base64.b64encode(pickled).decode()}


def _run(connection: Connection, statement: Any, rows: Sequence[dict[str, Any]], me: str) -> int:
    if not rows:
        return 0
    given = {"given": rows, "me": me}
    return connection.execute(statement, given, execution_options={"preserve_rowcount": True}).rowcount


def _ids_of_other_hosts(connection: Connection, records: Iterable[JobRecord]) -> list[str]:
    expected = {record.job_id: record.host for record in records}
    query = select(jobs.c.job_id, jobs.c.host).where(jobs.c.job_id.in_(expected))
    found = {row.job_id: row.host for row in connection.execute(query)}
    return [job_id for job_id, host in expected.items() if job_id not in found or found[job_id] != host]
