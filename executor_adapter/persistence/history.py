"""The history of one queue: what a durable store knows of its jobs, for code on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from executor_adapter.job import Job
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.persistence.stored_functions import StoredFunctions
from executor_adapter.store import JobFilter, StoreUnavailableError

FLUSH_TIMEOUT = 5.0
"""Seconds that a reader waits for pending writes before it reads the store as it is."""


class QueueHistory:
    """Reads one queue's jobs from a durable store without blocking the event loop.

    Each read first waits for pending writes, so that it sees all that has happened by now. A job that is live in this
    process is returned itself; another one is restored from its record, for reading.

    Args:
        recorder: writes the jobs of the executor that runs this queue; it must not be closed yet.
        live: that executor's live jobs by id.
        functions: decides which stored jobs may run again.
    """

    def __init__(self, recorder: Recorder, live: Mapping[str, Job], functions: StoredFunctions) -> None:
        self._recorder = recorder
        self._store, self._queue = recorder.store, recorder.queue
        self._live = live
        self._functions = functions

    async def get(self, job_id: str) -> Job | None:
        """Return the job with this id; None where this queue has none."""
        if (job := self._live.get(job_id)) is not None:
            return job
        await self._flush()
        record = await asyncio.to_thread(self._store.get, job_id)
        return None if record is None or record.queue != self._queue else self._functions.to_job(record)

    async def is_quarantined(self, job_id: str) -> bool:
        """Return whether the store has the job in quarantine; another process may have released it."""
        await self._flush()
        record = await asyncio.to_thread(self._store.get, job_id)
        return record is not None and record.quarantined

    async def find(self, fields: Mapping[str, Any], *, offset: int, limit: int | None) -> tuple[list[Job], int]:
        """Return one page of the jobs that have these fields, oldest first, and the number of jobs on all pages."""
        named = {name: value for name, value in fields.items() if name != "status"}
        statuses = frozenset({fields["status"]}) if "status" in fields else None
        wanted = JobFilter(queue=self._queue, statuses=statuses, **named)
        await self._flush()
        page = await asyncio.to_thread(self._store.find, wanted, offset=offset, limit=limit, newest_first=False)
        return [self._live.get(record.job_id) or self._functions.to_job(record) for record in page.records], page.total

    async def cleanup(self, max_age_hours: float) -> int:
        """Delete this queue's jobs that ended more than `max_age_hours` ago; return how many."""
        await self._flush()
        return await asyncio.to_thread(self._store.cleanup, max_age_hours, queue=self._queue)

    async def wait_until_recorded(self) -> None:
        """Wait until all that was submitted by now is in the store; return at once while that cannot be written."""
        with contextlib.suppress(StoreUnavailableError):
            await asyncio.wrap_future(self._recorder.written(may_wait=False))

    async def _flush(self) -> None:
        await asyncio.to_thread(self._recorder.flush, FLUSH_TIMEOUT)
