"""The jobs of a scheduler, and what a store knows of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.model import NEW_ID_HINT, Job, check_is_job
from executor_adapter.job.status import JobStatus
from executor_adapter.job.validation import check_age
from executor_adapter.persistence.history import QueueHistory


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
        self._history: QueueHistory | None = None

    def remember(self, history: QueueHistory | None) -> None:
        """Keep the past in a store from now on; what is remembered here of jobs that are over is left to it."""
        with self._lock:
            self._history = history
            if history is not None:
                self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.status.is_terminal}

    async def add_job(self, job: Job) -> str:
        """Queue a job; its id, or that of the live one that has its dedupe_key. With a store it is in there when this
        returns, unless that cannot be written now.

        Raises:
            InvalidJobError: it is not a Job, can never run, or its id is taken.
        """
        check_is_job(job)
        history = self._history
        if history is not None and "job_id" in job.model_fields_set and await history.get(job.job_id) is not None:
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
        if history is not None:
            await history.wait_until_recorded(taken)
        return taken.job_id

    async def is_quarantined(self, job_id: str) -> bool | None:
        """Whether the store says so; None without one."""
        return None if self._history is None else await self._history.is_quarantined(job_id)

    async def get_job(self, job_id: str) -> Job | None:
        job = self._jobs.get(job_id)
        return job if job is not None or self._history is None else await self._history.get(job_id)

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
        if self._history is None:
            return known[offset : None if limit is None else offset + limit]
        found, stored = await self._history.find(asked, offset=offset, limit=limit)
        not_stored = [job for job in known if _waits_for_start(job)][max(0, offset - stored) :]
        return [self._jobs.get(job.job_id, job) for job in found] + not_stored[
            : None if limit is None else limit - len(found)
        ]

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Forget the jobs that have been over for more than `max_age_hours`; how many that were.

        Raises:
            ValueError: `max_age_hours` is not a finite number from 0 on.
        """
        check_age("max_age_hours", max_age_hours)
        before = time.time() - max_age_hours * 3600
        with self._lock:
            over = [(id_, job.state.completed_at) for id_, job in self._jobs.items()]
            old = [id_ for id_, completed_at in over if completed_at is not None and completed_at < before]
            forgotten = sum(self._jobs.pop(job_id).job_id == job_id for job_id in old)
        return forgotten if self._history is None else await self._history.cleanup(max_age_hours)

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
        most = self._max_history if self._history is None else min(self._max_history, KEPT_BESIDE_STORE)
        surplus = len(self._jobs) - most
        if surplus <= 0:
            return
        with self._lock:
            # A tenth at once, so that the search is not made for each job.
            over = (job_id for job_id, job in self._jobs.items() if job.status.is_terminal)
            for job_id in list(itertools.islice(over, surplus + most // 10)):
                del self._jobs[job_id]


KEPT_BESIDE_STORE = 1000
"""Jobs that are over and are kept as they are, beside a store that knows them."""


def _waits_for_start(job: Job) -> bool:
    return job.live.future is None and not job.status.is_terminal


def _taken(job: Job) -> InvalidJobError:
    return InvalidJobError(
        f"a job with the id {job.job_id!r} is known already: {NEW_ID_HINT}, or retry_job({job.job_id!r})"
    )
