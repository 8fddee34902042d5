"""Jobs that wait for a slot, and jobs remembered."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, JobStatus


class Backlog:
    """Jobs ready to start: higher priority first, then first come, first served. The supervisor's own.

    A job that ends while it waits stays until its turn and is passed over then: removing it would be a search.
    """

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[Job]] = {}
        self._priorities: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, job: Job) -> None:
        self._queue_for(job.priority).append(job)
        self._length += 1

    def push_front(self, job: Job) -> None:
        """Put a job back that was taken too early: before all others of its priority."""
        self._queue_for(job.priority).appendleft(job)
        self._length += 1

    def peek(self) -> Job:
        """The job whose turn it is.

        Raises:
            IndexError: none waits.
        """
        return self._by_priority[self._priorities[-1]][0]

    def pop(self) -> Job:
        """Take the job whose turn it is.

        Raises:
            IndexError: none waits.
        """
        priority = self._priorities[-1]
        queue = self._by_priority[priority]
        job = queue.popleft()
        self._length -= 1
        if not queue:
            del self._by_priority[priority]
            self._priorities.pop()
        return job

    def _queue_for(self, priority: int) -> deque[Job]:
        queue = self._by_priority.get(priority)
        if queue is None:
            queue = self._by_priority[priority] = deque()
            bisect.insort(self._priorities, priority)
        return queue


class JobQueue:
    """The jobs of one scheduler, live and past: add, look up, list, clean up. For any thread or event loop.

    `accept`: called with each new job; raises where it is refused. `max_history`: so many jobs that are over are
    remembered; past it the oldest are forgotten, live ones never.
    """

    def __init__(self, accept: Callable[[Job], None], *, max_history: int = 100_000) -> None:
        self._accept = accept
        self._max_history = max_history
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    async def add_job(self, job: Job) -> str:
        """Queue a job; its id.

        Raises:
            InvalidJobError: it can never run, or its id is taken.
        """
        with self._lock:
            if job.job_id in self._jobs:
                raise InvalidJobError(f"a job with the id {job.job_id!r} is known already: ids must be unique")
            self._jobs[job.job_id] = job
        try:
            self._accept(job)
        except BaseException:
            with self._lock:
                del self._jobs[job.job_id]
            raise
        self._forget_surplus()
        return job.job_id

    async def get_job(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

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
            found = [job for job in self._jobs.values() if all(getattr(job, n) == v for n, v in asked.items())]
        return found[offset : None if limit is None else offset + limit]

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Forget the jobs that have been over for more than `max_age_hours`; how many that were."""
        before = datetime.now(UTC) - timedelta(hours=max_age_hours)
        with self._lock:
            old = [id_ for id_, job in self._jobs.items() if job.completed_at is not None and job.completed_at < before]
            for job_id in old:
                del self._jobs[job_id]
        return len(old)

    def _forget_surplus(self) -> None:
        surplus = len(self._jobs) - self._max_history
        if surplus <= 0:
            return
        with self._lock:
            # A tenth at once, so that the search is not made for each job.
            over = (job_id for job_id, job in self._jobs.items() if job.status.is_terminal)
            for job_id in list(itertools.islice(over, surplus + self._max_history // 10)):
                del self._jobs[job_id]
