"""The statements by which hosts write their jobs: compiled once, since nothing else is done as often."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, bindparam, false, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.store.records import JobRecord
from executor_adapter.store.sql.id_sets import Sets, are_a_set
from executor_adapter.store.sql.row_mapping import FIXED, changing_row_of, row_of
from executor_adapter.store.sql.schema import jobs

_WRITTEN = [column.name for column in jobs.columns if column.name != "cancel_requested"]
TOGETHER = 50
_CHANGING = [name for name in _WRITTEN if name not in FIXED]


class Writing:
    """Writes records of new jobs, and what has changed of known ones, where they are the host's."""

    def __init__(self, dialect: Dialect) -> None:
        self._is_sqlite = dialect.name == "sqlite"
        flavour = sqlite if self._is_sqlite else postgresql
        new = flavour.insert(jobs).values({name: bindparam(name) for name in _WRITTEN})
        # A known id: the job is the host's own, or one that was over before this one was made.
        on_conflict = {
            "index_elements": ["job_id"],
            "set_": {name: new.excluded[name] for name in _WRITTEN} | {"cancel_requested": false()},
            "where": or_(
                jobs.c.host == bindparam("me"),
                jobs.c.completed_at.is_not(None) & (jobs.c.created_at < new.excluded.created_at),
            ),
        }
        new = new.on_conflict_do_update(**on_conflict)
        known = (
            update(jobs)
            .where(jobs.c.job_id == bindparam("its_id"), jobs.c.host == bindparam("me"))
            .values({name: bindparam(name) for name in _CHANGING})
        )
        # By position, since that is what both drivers take as it is.
        make: Callable[..., Dialect] = type(dialect)
        positional = make(paramstyle="qmark" if self._is_sqlite else "format")
        self._new = _Statement(new, positional)
        self._known = _Statement(known, positional)
        self._sets = None if self._is_sqlite else Sets(_WRITTEN, ["job_id", *_CHANGING], on_conflict)

    def write(
        self, connection: Connection, host_id: str, new: Sequence[JobRecord], changed: Sequence[JobRecord]
    ) -> list[str]:
        """The ids of those that are another host's by now, and stay as they are."""
        written = self._insert(connection, [row_of(record) for record in new], host_id)
        written += self._update(connection, [changing_row_of(record) for record in changed], host_id)
        return [] if written == len(new) + len(changed) else _taken(connection, (*new, *changed))

    def _insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        if self._sets is not None and are_a_set(rows):
            return self._sets.insert(connection, rows, me)
        return self._new.run(connection, rows, me, together=self._sets is None)

    def _update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        if self._sets is not None and are_a_set(rows):
            return self._sets.update(connection, rows, me)
        return self._known.run(connection, [row | {"its_id": row["job_id"]} for row in rows], me)


class _Statement:
    """A statement as its driver takes it: for one row, and for TOGETHER at once. Its last parameter is `me`.

    SQLite's driver lets go of the interpreter for every execution, and may have to wait to get it back while jobs run:
    so rows that can go together do. PostgreSQL is slow with many parameters: see `Sets`.
    """

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._one = str(compiled)
        values = re.search(r"VALUES (\(.*?\)) ON CONFLICT", self._one)
        self._many = "" if values is None else self._one.replace(values[1], ", ".join([values[1]] * TOGETHER))
        self._pick = operator.itemgetter(*(name for name in compiled.positiontup if name != "me"))

    def run(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str, *, together: bool = False) -> int:
        """How many rows were written."""
        picked = [self._pick(row) for row in rows]
        written = 0
        while together and len(picked) >= TOGETHER:
            some, picked = picked[:TOGETHER], picked[TOGETHER:]
            written += connection.exec_driver_sql(self._many, (*itertools.chain.from_iterable(some), me)).rowcount
        if picked:
            written += connection.exec_driver_sql(self._one, [(*row, me) for row in picked]).rowcount
        return written


def _taken(connection: Connection, records: Iterable[JobRecord]) -> list[str]:
    expected = {record.job_id: record.host for record in records}
    query = select(jobs.c.job_id, jobs.c.host).where(jobs.c.job_id.in_(expected))
    found = {row.job_id: row.host for row in connection.execute(query)}
    return [job_id for job_id, host in expected.items() if job_id not in found or found[job_id] != host]
