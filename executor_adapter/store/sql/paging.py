"""Pages of a long list, read from indexes as far as the page goes and no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Select, func, literal, select, union_all

from executor_adapter.store.records import JobFilter
from executor_adapter.store.sql.filters import conditions
from executor_adapter.store.sql.schema import jobs


def page_of(wanted: JobFilter, offset: int, limit: int | None, newest_first: bool) -> Select[Any]:
    """The whole rows of a page: its ids come from an index alone."""
    ids = _ids(wanted)
    which = ids.order_by(*_order(ids.selected_columns, newest_first)).offset(offset).limit(limit).subquery()
    rows = select(jobs).where(jobs.c.job_id.in_(select(which.c.job_id)))
    return rows.order_by(*_order(jobs.c, newest_first))


def count_of(wanted: JobFilter, most: int) -> Select[Any]:
    """How many jobs match, counted up to `most`."""
    some = select(literal(1)).select_from(jobs).where(*conditions(wanted)).limit(most).subquery()
    return select(func.count()).select_from(some)


def _ids(wanted: JobFilter) -> Any:
    """Of several statuses one list each, to be merged: together they are in no index's order, and would be sorted."""
    alone = [wanted]
    if wanted.statuses is not None and len(wanted.statuses) > 1:
        alone = [replace(wanted, statuses=frozenset({status})) for status in sorted(wanted.statuses)]
    lists = [select(jobs.c.created_at, jobs.c.job_id).where(*conditions(one)) for one in alone]
    return lists[0] if len(lists) == 1 else union_all(*lists)


def _order(columns: Any, newest_first: bool) -> list[Any]:
    order = [columns.created_at, columns.job_id]
    return [column.desc() for column in order] if newest_first else order
