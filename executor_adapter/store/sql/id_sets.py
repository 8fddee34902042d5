"""Many rows in one statement of PostgreSQL: as a JSON document, which it takes apart itself.

An execution for each row costs both sides about twice as much, however they are sent.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from sqlalchemy import JSON, Connection, Text, bindparam, column, func, select, update
from sqlalchemy.dialects.postgresql import insert

from executor_adapter.store.sql.schema import jobs


class Sets:
    """`written`: the columns of new jobs; `changing`: those that change of known ones, and the id; `on_conflict`: what
    becomes of a new job whose id is known."""

    def __init__(self, written: Sequence[str], changing: Sequence[str], on_conflict: dict[str, Any]) -> None:
        given = _given(written)
        self._new = insert(jobs).from_select(written, select(*(_value(given, name) for name in written)))
        self._new = self._new.on_conflict_do_update(**on_conflict)
        given = _given(changing)
        mine = (jobs.c.job_id == given.c.job_id, jobs.c.host == bindparam("me"))
        changes = {name: given.c[name] for name in changing if name != "job_id"}
        self._known = update(jobs).where(*mine).values(changes)

    def insert(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        """How many rows were written."""
        return _run(connection, self._new, [_as_json(row) for row in rows], me)

    def update(self, connection: Connection, rows: Sequence[dict[str, Any]], me: str) -> int:
        return _run(connection, self._known, rows, me)


def are_a_set(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no job is there twice: one statement changes a row once."""
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
