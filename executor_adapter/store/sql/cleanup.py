"""Forgets jobs that have long been over, and keeps other writers waiting for some milliseconds at most.

The jobs are found oldest first, by the index of ends, in a transaction that reads only; what was found is deleted by id
in one that takes no longer than STEP_SECONDS, so far as the last one tells; and after each the others have their turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, not_, select

from executor_adapter.job.model import TERMINAL
from executor_adapter.store.sql import log_lines
from executor_adapter.store.sql.schema import jobs

STEP_SECONDS = 0.01
"""For so long a step may hold the lock of writers."""
FIRST_STEP, LARGEST_STEP = 16, 512
"""Jobs."""
REST = 0.005
"""Seconds at least between two steps."""

Transaction = Callable[[], AbstractContextManager[Connection]]


def forget_ended(reading: Transaction, changing: Transaction, *, before: float, queue: str | None) -> int:
    """Forget the jobs that were over `before` then; how many that were. Quarantined ones stay."""
    size, total, since = FIRST_STEP, 0, 0.0
    while True:
        with reading() as connection:
            found = _oldest(connection, before, queue, since, size)
        if not found:
            return total
        began = time.monotonic()
        with changing() as connection:
            began = time.monotonic()  # it may have waited for its own turn
            total += _forget(connection, [row.job_id for row in found], before)
        took = time.monotonic() - began
        since = found[-1].completed_at
        size = _next_size(size, took)
        time.sleep(max(REST, took))


def _next_size(size: int, took: float) -> int:
    if took > STEP_SECONDS:
        return max(1, size // 2)
    return min(LARGEST_STEP, 2 * size) if took < STEP_SECONDS / 3 else size


def _oldest(connection: Connection, before: float, queue: str | None, since: float, size: int) -> Sequence[Any]:
    ended = jobs.c.completed_at
    query = select(jobs.c.job_id, ended).where(ended >= since, ended < before, *_may_go())
    if queue is not None:
        query = query.where(_unindexed(jobs.c.queue) == queue)
    return connection.execute(query.order_by(ended).limit(size)).all()


def _forget(connection: Connection, job_ids: list[str], before: float) -> int:
    still_old = _unindexed(jobs.c.completed_at, before) < before  # an id may belong to another job by now
    step = delete(jobs).where(jobs.c.job_id.in_(job_ids), still_old, *_may_go()).returning(jobs.c.job_id)
    deleted = connection.execute(step).scalars().all()
    if deleted:
        log_lines.forget(connection, deleted)
    return len(deleted)


def _may_go() -> tuple[ColumnElement[bool], ...]:
    return _unindexed(jobs.c.status).in_(sorted(TERMINAL)), not_(jobs.c.quarantined)


def _unindexed(column: ColumnElement[Any], otherwise: Any = "") -> ColumnElement[Any]:
    """The column, in words by which no database takes an index of it for better than the one that is meant: SQLite
    would walk a whole queue, and sort it, for each step."""
    return func.coalesce(column, otherwise)
