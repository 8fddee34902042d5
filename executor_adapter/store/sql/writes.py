"""The statements with which hosts write their jobs, compiled once because nothing else runs as often."""

from __future__ import annotations

import base64
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Dialect, Text, bindparam, column, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.store.records import JobRecord
from executor_adapter.store.sql.rows import FIXED, changing_row_of, row_of
from executor_adapter.store.sql.schema import jobs

_WRITTEN = [column.name for column in jobs.columns if column.name != "cancel_requested"]
ROWS_PER_STATEMENT = 50
"""Rows that one statement inserts into SQLite."""
_CHANGING = [name for name in _WRITTEN if name not in FIXED]


class JobWriter:
    """Writes new and changed records, where no other host has the job."""

    def __init__(self, dialect: Dialect) -> None:
        self._is_sqlite = dialect.name == "sqlite"
        flavour = sqlite if self._is_sqlite else postgresql
        new = flavour.insert(jobs).values({name: bindparam(name) for name in _WRITTEN})
        # The row of a known id is replaced if it is this host's own, or of another job, which has finished. A host that
        # repeats a write may find its own job finished by the host that took it over: their `created_at` is the same.
        on_conflict = {
            "index_elements": ["job_id"],
            "set_": {name: new.excluded[name] for name in _WRITTEN} | {"cancel_requested": false()},
            "where": or_(
                jobs.c.host == bindparam("me"),
                jobs.c.completed_at.is_not(None) & (jobs.c.created_at != new.excluded.created_at),
            ),
        }
        new = new.on_conflict_do_update(**on_conflict)
        known = (
            update(jobs)
            .where(jobs.c.job_id == bindparam("its_id"), jobs.c.host == bindparam("me"))
            .values({name: bindparam(name) for name in _CHANGING})
        )
        # Parameters by position, because both drivers take those without a conversion.
        make: Callable[..., Dialect] = type(dialect)
        positional = make(paramstyle="qmark" if self._is_sqlite else "format")
        self._new = _Statement(new, positional)
        self._known = _Statement(known, positional)
        self._sets = None if self._is_sqlite else _SetStatements(_WRITTEN, ["job_id", *_CHANGING], on_conflict)

    def write(
        self, connection: Connection, host_id: str, new: Sequence[JobRecord], changed: Sequence[JobRecord]
    ) -> list[str]:
        """Write the records; return the ids of jobs that belong to another host by now, which stay as they are."""
        written = self._update(connection, [changing_row_of(record) for record in changed], host_id)
        written += self._insert(connection, [row_of(record) for record in new], host_id)
        return [] if written == len(new) + len(changed) else _ids_of_other_hosts(connection, (*new, *changed))

    def _insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        if self._sets is not None and _have_unique_ids(rows):
            return self._sets.insert(connection, rows, me)
        return self._new.run(connection, rows, me, several=self._sets is None)

    def _update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        if self._sets is not None and _have_unique_ids(rows):
            return self._sets.update(connection, rows, me)
        return self._known.run(connection, [row | {"its_id": row["job_id"]} for row in rows], me)


class _Statement:
    """Holds a statement as its driver takes it, for one row and for ROWS_PER_STATEMENT; its last parameter is `me`.

    SQLite's driver releases the GIL for each execution, and may have to wait to get it back while jobs run, so it gets
    many rows at a time. PostgreSQL is slow with many parameters, see `_SetStatements`.
    """

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._one = str(compiled)
        values = re.search(r"VALUES (\(.*?\)) ON CONFLICT", self._one)
        self._many = "" if values is None else self._one.replace(values[1], ", ".join([values[1]] * ROWS_PER_STATEMENT))
        self._pick = operator.itemgetter(*(name for name in compiled.positiontup if name != "me"))

    def run(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str, *, several: bool = False) -> int:
        """Execute it for all rows; return how many were written."""
        picked = [self._pick(row) for row in rows]
        written = 0
        while several and len(picked) >= ROWS_PER_STATEMENT:
            some, picked = picked[:ROWS_PER_STATEMENT], picked[ROWS_PER_STATEMENT:]
            written += connection.exec_driver_sql(self._many, (*itertools.chain.from_iterable(some), me)).rowcount
        if picked:
            written += connection.exec_driver_sql(self._one, [(*row, me) for row in picked]).rowcount
        return written


class _SetStatements:
    """Writes many rows with one statement of PostgreSQL, which takes them as one JSON document and expands it.

    One execution for each row would cost both sides about twice as much, however the executions are sent. There are two
    statements, for new jobs and for changed ones.

    Args:
        written: the columns of new jobs.
        changing: the columns that change of known jobs, and the id.
        on_conflict: what to do with a new job whose id is known.
    """

    def __init__(self, written: Sequence[str], changing: Sequence[str], on_conflict: dict[str, Any]) -> None:
        given = _given(written)
        self._new = postgresql.insert(jobs).from_select(written, select(*(_value(given, name) for name in written)))
        self._new = self._new.on_conflict_do_update(**on_conflict)
        given = _given(changing)
        mine = (jobs.c.job_id == given.c.job_id, jobs.c.host == bindparam("me"))
        changes = {name: given.c[name] for name in changing if name != "job_id"}
        self._known = update(jobs).where(*mine).values(changes)

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Insert new jobs; return how many rows were written."""
        return _run(connection, self._new, [_as_json(row) for row in rows], me)

    def update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """Update known jobs; return how many rows were written."""
        return _run(connection, self._known, rows, me)


def _have_unique_ids(rows: Sequence[dict[str, Any]]) -> bool:
    """Return whether no id occurs twice; one statement can change a row only once."""
    return len({row["job_id"] for row in rows}) == len(rows)


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
