"""Queries for jobs: the conditions of a JobFilter, those by which hosts find jobs, and pages of a list.

A query for one page of a long list reads an index as far as the page goes and no further.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, literal, not_, or_, select, union_all
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.store.records import LIVE, SEARCHED, JobFilter
from executor_adapter.store.sql.schema import hosts, jobs

is_live = jobs.c.status.in_(sorted(LIVE))
has_lost_host = jobs.c.host.not_in(select(hosts.c.host_id))
has_no_host = or_(jobs.c.host.is_(None), has_lost_host)


def insert_missing(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows whose keys the table does not have yet."""
    flavour = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(flavour.insert(table).on_conflict_do_nothing(), rows)


def conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    """Return the conditions that a job must meet to match the filter."""
    return [*_named(wanted), *_in_time(wanted)]


def _named(wanted: JobFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.statuses is not None:
        yield jobs.c.status.in_(sorted(wanted.statuses))
    for name in ("queue", "job_type", "tool_name", "retry_of"):
        if (asked := getattr(wanted, name)) is not None:
            yield jobs.c[name] == asked
    if wanted.quarantined is not None:
        # A literal and not a parameter, or SQLite would not use the index of quarantined jobs.
        yield jobs.c.quarantined if wanted.quarantined else not_(jobs.c.quarantined)
    if wanted.text is not None:
        pattern = "%" + wanted.text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_") + "%"
        yield or_(*(func.lower(jobs.c[name]).like(pattern.lower(), escape="\\") for name in SEARCHED))


def _in_time(wanted: JobFilter) -> Iterator[ColumnElement[bool]]:
    created, ended = (wanted.created_from, wanted.created_before), (wanted.ended_from, wanted.ended_before)
    for column, (start, end) in ((jobs.c.created_at, created), (jobs.c.completed_at, ended)):
        if start is not None:
            yield column >= start
        if end is not None:
            yield column < end


_LISTED = [column for column in jobs.columns if column.name != "traceback"]
"""Not the tracebacks: a list may be of a hundred thousand jobs, each with 8 kB of it."""


def page_of(wanted: JobFilter, offset: int, limit: int | None, newest_first: bool) -> Select[Any]:
    """Return a query for the rows of a page, whose ids come from an index alone."""
    ids = _ids(wanted)
    which = ids.order_by(*_order(ids.selected_columns, newest_first)).offset(offset).limit(limit).subquery()
    rows = select(*_LISTED).where(jobs.c.job_id.in_(select(which.c.job_id)))
    return rows.order_by(*_order(jobs.c, newest_first))


def count_of(wanted: JobFilter, limit: int) -> Select[Any]:
    """Return a query for the number of jobs that match, counted up to `limit`."""
    some = select(literal(1)).select_from(jobs).where(*conditions(wanted)).limit(limit).subquery()
    return select(func.count()).select_from(some)


def _ids(wanted: JobFilter) -> Any:
    """Return a query for the ids of the jobs that match.

    Each of several statuses has a query of its own, and the lists are merged: no index has the jobs of several statuses
    in order, so that the database would have to sort them all.
    """
    single = [wanted]
    if wanted.statuses is not None and len(wanted.statuses) > 1:
        single = [replace(wanted, statuses=frozenset({status})) for status in sorted(wanted.statuses)]
    lists = [select(jobs.c.created_at, jobs.c.job_id).where(*conditions(one)) for one in single]
    return lists[0] if len(lists) == 1 else union_all(*lists)


def _order(columns: Any, newest_first: bool) -> list[Any]:
    order = [columns.created_at, columns.job_id]
    return [column.desc() for column in order] if newest_first else order
