"""JobQueue: the jobs of a scheduler, live and finished."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import NEW_ID_HINT, Job, JobStatus, check_age, check_is_job
from executor_adapter.persistence.history import QueueHistory


class JobQueue:
    """Adds, finds, lists and cleans up the jobs of one scheduler. Usable from any thread or event loop.

    `accept`: called with each new job; returns it, or the live job with the same dedupe_key; raises if it refuses the
    job. `max_history`: how many finished jobs are kept; the oldest are deleted first, live jobs never. With a
    store that outlives the program (`use_history`), finished jobs are there, and are restored from their records.
    """

    def __init__(self, accept: Callable[[Job], Job], *, max_history: int = 100_000) -> None:
        self._accept = accept
        self._max_history = max_history
        self._lock = threading.RLock()  # Re-entrant, see BaseScheduler.
        self._jobs: dict[str, Job] = {}
        self._history: QueueHistory | None = None

    def use_history(self, history: QueueHistory | None) -> None:
        """Leave finished jobs to a store from now on, and discard those that are kept here."""
        with self._lock:
            self._history = history
            if history is not None:
                self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.status.is_terminal}

    async def add_job(self, job: Job) -> str:
        """Queue a job, and return its id or that of the live job with the same dedupe_key.

        With a store, the job is written when this returns, unless the store cannot be reached now.

        Raises:
            InvalidJobError: It is not a Job, can never run, or its id is taken.
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
            await history.wait_until_recorded()
        return taken.job_id

    async def is_quarantined(self, job_id: str) -> bool | None:
        """Return whether the store holds the job in quarantine; None without a store."""
        return None if self._history is None else await self._history.is_quarantined(job_id)

    async def get_job(self, job_id: str) -> Job | None:
        """Return the job with this id; None where it is unknown."""
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
        """Return the jobs that match, in the order in which they were added."""
        wanted = {"status": status, "job_type": job_type, "tool_name": tool_name}
        fields = {name: value for name, value in wanted.items() if value is not None}
        with self._lock:
            jobs = [job for job_id, job in self._jobs.items() if job_id == job.job_id]
        known = [job for job in jobs if all(getattr(job, n) == v for n, v in fields.items())]
        if self._history is None:
            return known[offset : None if limit is None else offset + limit]
        found, stored = await self._history.find(fields, offset=offset, limit=limit)
        waiting = [job for job in known if job.live.future is None and not job.status.is_terminal]
        not_stored = waiting[max(0, offset - stored) :]
        return [self._jobs.get(job.job_id, job) for job in found] + not_stored[
            : None if limit is None else limit - len(found)
        ]

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Delete jobs that finished more than `max_age_hours` ago, and return how many.

        Raises:
            ValueError: `max_age_hours` is negative or not finite.
        """
        check_age("max_age_hours", max_age_hours)
        before = time.time() - max_age_hours * 3600
        with self._lock:
            ends = ((id_, job.state.completed_at) for id_, job in self._jobs.items())
            old = [id_ for id_, ended_at in ends if ended_at is not None and ended_at < before]
            deleted = sum(self._jobs.pop(job_id).job_id == job_id for job_id in old)
        return deleted if self._history is None else await self._history.cleanup(max_age_hours)

    def forget(self, job: Job) -> None:
        """Remove a job that was not queued after all."""
        with self._lock:
            self._jobs.pop(job.job_id, None)

    def redirect(self, job: Job, twin: Job) -> None:
        """Return `twin` from now on where `job` is asked for.

        The id of `job` was returned to a caller, but it does not run: `twin` is live and has the same dedupe_key.
        """
        with self._lock:
            self._jobs[job.job_id] = twin

    def _forget_surplus(self) -> None:
        limit = self._max_history if self._history is None else min(self._max_history, MAX_FINISHED_BESIDE_STORE)
        surplus = len(self._jobs) - limit
        if surplus <= 0:
            return
        with self._lock:
            # A tenth more than needed, so that the search is not made for each job.
            finished = (job_id for job_id, job in self._jobs.items() if job.status.is_terminal)
            for job_id in list(itertools.islice(finished, surplus + limit // 10)):
                self._jobs.pop(job_id, None)


MAX_FINISHED_BESIDE_STORE = 1000
"""Finished jobs that are kept in memory although a store remembers them."""


def _taken(job: Job) -> InvalidJobError:
    return InvalidJobError(
        f"a job with the id {job.job_id!r} is known already: {NEW_ID_HINT}, or retry_job({job.job_id!r})"
    )
