"""The jobs of a scheduler, and what a store knows of them."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.model import NEW_ID, Job, JobStatus, check_is_job
from executor_adapter.job.validation import check_age
from executor_adapter.store.base import JobFilter, JobStore

if TYPE_CHECKING:
    from executor_adapter.persistence.recorder import Recorder


class JobQueue:
    """The jobs of one scheduler, live and past: add, look up, list, clean up. For any thread or event loop.

    `accept`: called with each new job; gives the job, or the live one that has its dedupe_key; raises where it is
    refused. `max_history`: so many jobs that are over are remembered; past it the oldest are forgotten, live ones
    never. With a store that outlives the program (`remember`) the past is there: a job of it is made again from its
    record, to be looked at.
    """

    def __init__(self, accept: Callable[[Job], Job], *, max_history: int = 100_000) -> None:
        self._accept = accept
        self._max_history = max_history
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._past: StoredPast | None = None

    def remember(self, past: StoredPast | None) -> None:
        """Keep the past in a store from now on; what is remembered here of jobs that are over is left to it."""
        with self._lock:
            self._past = past
            if past is not None:
                self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.status.is_terminal}

    async def add_job(self, job: Job) -> str:
        """Queue a job; its id, or that of the live one that has its dedupe_key. With a store it is in there when this
        returns, unless that cannot be written now.

        Raises:
            InvalidJobError: it is no Job, can never run, or its id is taken.
        """
        check_is_job(job)
        past = self._past
        if past is not None and "job_id" in job.model_fields_set and await past.get(job.job_id) is not None:
            raise _taken(job)
        with self._lock:
            if job.job_id in self._jobs:
                raise _taken(job)
            self._jobs[job.job_id] = job
        try:
            taken = self._accept(job)
        except BaseException:
            self.forget(job)
            raise
        if taken is not job:
            self.forget(job)
        self._forget_surplus()
        if past is not None:
            await past.recorded(taken)
        return taken.job_id

    async def is_quarantined(self, job_id: str) -> bool | None:
        """Whether the store says so; None without one."""
        return None if self._past is None else await self._past.is_quarantined(job_id)

    async def get_job(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job is not None or self._past is None else await self._past.get(job_id)

    async def list_jobs(
        self,
        *,
        status: JobStatus | None = None,
        job_type: str | None = None,
        tool_name: str | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> list[Job]:
        """The jobs that match, in the order in which they were added."""
        wanted = {"status": status, "job_type": job_type, "tool_name": tool_name}
        asked = {name: value for name, value in wanted.items() if value is not None}
        with self._lock:
            jobs = [job for job_id, job in self._jobs.items() if job_id == job.job_id]
        known = [job for job in jobs if all(getattr(job, n) == v for n, v in asked.items())]
        if self._past is None:
            return known[offset : None if limit is None else offset + limit]
        found, stored = await self._past.find(asked, offset=offset, limit=limit)
        not_stored = [job for job in known if _waits_for_start(job)][max(0, offset - stored) :]
        return [self._jobs.get(job.job_id, job) for job in found] + not_stored[
            : None if limit is None else limit - len(found)
        ]

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Forget the jobs that have been over for more than `max_age_hours`; how many that were.

        Raises:
            ValueError: `max_age_hours` is no finite number from 0 on.
        """
        check_age("max_age_hours", max_age_hours)
        before = time.time() - max_age_hours * 3600
        with self._lock:
            over = [(id_, job._live.completed_at) for id_, job in self._jobs.items()]
            old = [id_ for id_, completed_at in over if completed_at is not None and completed_at < before]
            forgotten = sum(self._jobs.pop(job_id).job_id == job_id for job_id in old)
        return forgotten if self._past is None else await self._past.cleanup(max_age_hours)

    def forget(self, job: Job) -> None:
        """It was not queued after all."""
        with self._lock:
            self._jobs.pop(job.job_id, None)

    def lead_to(self, job: Job, twin: Job) -> None:
        """The job, whose id was given out, is not run, since `twin` is live and has its dedupe_key: who looks for the
        one finds the other."""
        with self._lock:
            self._jobs[job.job_id] = twin

    def _forget_surplus(self) -> None:
        most = self._max_history if self._past is None else min(self._max_history, KEPT_BESIDE_STORE)
        surplus = len(self._jobs) - most
        if surplus <= 0:
            return
        with self._lock:
            # A tenth at once, so that the search is not made for each job.
            over = (job_id for job_id, job in self._jobs.items() if job.status.is_terminal)
            for job_id in list(itertools.islice(over, surplus + most // 10)):
                del self._jobs[job_id]


class StoredPast:
    """What a store that outlives the program knows of one queue, for event loops.

    `recorder`: of the executor that runs the queue's jobs, for as long as it is not shut down. `live`: that executor's
    jobs which are not over, by id.
    """

    def __init__(self, store: JobStore, queue: str, recorder: Recorder, live: Mapping[str, Job]) -> None:
        self._store = store
        self._queue = queue
        self._recorder = recorder
        self._live = live

    async def get(self, job_id: str) -> Job | None:
        job = self._live.get(job_id)
        if job is not None:
            return job
        await self._settled()
        record = await asyncio.to_thread(self._store.get, job_id)
        return None if record is None or record.queue != self._queue else record.to_job()

    async def is_quarantined(self, job_id: str) -> bool:
        """Whether it is, by now; another process may have released it."""
        await self._settled()
        record = await asyncio.to_thread(self._store.get, job_id)
        return record is not None and record.quarantined

    async def find(self, asked: Mapping[str, Any], *, offset: int, limit: int | None) -> tuple[list[Job], int]:
        """The jobs whose fields are as asked, by their creation; how many there are without `offset` and `limit`."""
        fields = {name: value for name, value in asked.items() if name != "status"}
        statuses = frozenset({asked["status"]}) if "status" in asked else None
        wanted = JobFilter(queue=self._queue, statuses=statuses, **fields)
        await self._settled()
        page = await asyncio.to_thread(self._store.find, wanted, offset=offset, limit=limit, newest_first=False)
        return [self._live.get(record.job_id) or record.to_job() for record in page.records], page.total

    async def cleanup(self, max_age_hours: float) -> int:
        await self._settled()
        return await asyncio.to_thread(self._store.cleanup, max_age_hours, queue=self._queue)

    async def recorded(self, job: Job) -> None:
        await asyncio.wrap_future(self._recorder.recorded(job))

    async def _settled(self) -> None:
        """Wait for what was told to be in the store, where it can be."""
        await asyncio.to_thread(self._recorder.flush, SETTLING)


SETTLING = 5.0
KEPT_BESIDE_STORE = 1000
"""Jobs that are over and are kept as they are, beside a store that knows them."""


def _waits_for_start(job: Job) -> bool:
    return job._live.future is None and not job.status.is_terminal


def _taken(job: Job) -> InvalidJobError:
    return InvalidJobError(f"a job with the id {job.job_id!r} is known already: {NEW_ID}, or retry_job({job.job_id!r})")
