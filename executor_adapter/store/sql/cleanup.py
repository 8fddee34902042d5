"""Deletes finished jobs in small steps, so that other writers wait for some milliseconds at most.

The jobs are found oldest first, by the index of their ends, in a transaction that only reads. A second transaction
deletes them by id; its size is chosen so that it takes no longer than MAX_STEP_SECONDS, as far as the previous step
tells. After each step, other writers can write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, not_, select

from executor_adapter.job import TERMINAL
from executor_adapter.store.sql.schema import jobs, lines

MAX_STEP_SECONDS = 0.01
"""Seconds for which a step may hold the lock of writers."""
FIRST_STEP_SIZE, MAX_STEP_SIZE = 16, 512
"""Jobs that one step deletes."""
MIN_PAUSE_SECONDS = 0.005
"""Seconds between two steps, at least."""

Transaction = Callable[[], AbstractContextManager[Connection]]


def delete_finished(reading: Transaction, changing: Transaction, *, before: float, queue: str | None) -> int:
    """Delete the jobs that finished before this time, except quarantined ones; return how many."""
    size, total, since = FIRST_STEP_SIZE, 0, 0.0
    while True:
        with reading() as connection:
            found = _find_oldest(connection, before, queue, since, size)
        if not found:
            return total
        with changing() as connection:
            began = time.monotonic()  # Entering the transaction may have had to wait for the lock.
            total += _delete(connection, [row.job_id for row in found], before)
        seconds = time.monotonic() - began
        since = found[-1].completed_at
        size = _next_size(size, seconds)
        time.sleep(max(MIN_PAUSE_SECONDS, seconds))


def _next_size(size: int, seconds: float) -> int:
    if seconds > MAX_STEP_SECONDS:
        return max(1, size // 2)
    return min(MAX_STEP_SIZE, 2 * size) if seconds < MAX_STEP_SECONDS / 3 else size


def _find_oldest(connection: Connection, before: float, queue: str | None, since: float, size: int) -> Sequence[Any]:
    ended = jobs.c.completed_at
    query = select(jobs.c.job_id, ended).where(ended >= since, ended < before, *_deletable())
    if queue is not None:
        query = query.where(_unindexed(jobs.c.queue) == queue)
    return connection.execute(query.order_by(ended).limit(size)).all()


def _delete(connection: Connection, job_ids: list[str], before: float) -> int:
    still_old = _unindexed(jobs.c.completed_at, before) < before  # Another job may have the id by now.
    step = delete(jobs).where(jobs.c.job_id.in_(job_ids), still_old, *_deletable()).returning(jobs.c.job_id)
    deleted = connection.execute(step).scalars().all()
    if deleted:
        connection.execute(delete(lines).where(lines.c.job_id.in_(deleted)))
    return len(deleted)


def _deletable() -> tuple[ColumnElement[bool], ...]:
    return _unindexed(jobs.c.status).in_(sorted(TERMINAL)), not_(jobs.c.quarantined)


def _unindexed(column: ColumnElement[Any], otherwise: Any = "") -> ColumnElement[Any]:
    """Return the column as an expression, so that no database prefers an index of it to the index of ends.

    SQLite would otherwise scan a whole queue, and sort it, for each step.
    """
    return func.coalesce(column, otherwise)
