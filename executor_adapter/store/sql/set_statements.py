"""Writes many rows with one statement of PostgreSQL, which takes them as one JSON document and expands it.

One execution for each row would cost both sides about twice as much, however the executions are sent.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Text, bindparam, column, func, select, update
from sqlalchemy.dialects.postgresql import insert

from executor_adapter.store.sql.schema import jobs


class SetStatements:
    """Holds the two statements, for new jobs and for changed ones.

    Args:
        written: the columns of new jobs.
        changing: the columns that change of known jobs, and the id.
        on_conflict: what to do with a new job whose id is known.
    """

    def __init__(self, written: Sequence[str], changing: Sequence[str], on_conflict: dict[str, Any]) -> None:
        given = _given(written)
        self._new = insert(jobs).from_select(written, select(*(_value(given, name) for name in written)))
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


def have_unique_ids(rows: Sequence[dict[str, Any]]) -> bool:
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
