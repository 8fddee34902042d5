"""Queries for one page of a long list, which read an index as far as the page goes and no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Select, func, literal, select, union_all

from executor_adapter.store.records import JobFilter
from executor_adapter.store.sql.filters import conditions
from executor_adapter.store.sql.schema import jobs

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
