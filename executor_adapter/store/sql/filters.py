"""Conditions of SQL: those of a JobFilter, and those by which hosts find jobs."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, func, not_, or_, select

from executor_adapter.job import JobStatus
from executor_adapter.store.records import LIVE, JobFilter
from executor_adapter.store.sql.schema import hosts, jobs

is_live = jobs.c.status.in_(sorted(LIVE))
is_waiting = jobs.c.status == JobStatus.PENDING.value
has_no_host = or_(jobs.c.host.is_(None), not_(select(hosts.c.host_id).where(hosts.c.host_id == jobs.c.host).exists()))

_TEXT = ("job_id", "job_type", "tool_name", "function", "error_code", "error_message")


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
        yield or_(*(func.lower(jobs.c[name]).like(pattern.lower(), escape="\\") for name in _TEXT))


def _in_time(wanted: JobFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.created_from is not None:
        yield jobs.c.created_at >= wanted.created_from
    if wanted.created_before is not None:
        yield jobs.c.created_at < wanted.created_before
    if wanted.ended_from is not None:
        yield jobs.c.completed_at >= wanted.ended_from
    if wanted.ended_before is not None:
        yield jobs.c.completed_at < wanted.ended_before
