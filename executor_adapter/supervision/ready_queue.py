"""The queue of jobs that are ready to start."""

from __future__ import annotations

import bisect
from collections import deque

from executor_adapter.job import Job


class ReadyQueue:
    """Holds jobs that are ready to start: higher priority first, then in order of arrival. Supervisor thread only.

    A job that ends while it is queued stays here until its turn, when the dispatcher skips it: removing it earlier
    would mean a search.
    """

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[Job]] = {}
        self._priorities: list[int] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, job: Job) -> None:
        """Add a job behind all others of its priority."""
        self._queue_for(job.priority).append(job)
        self._length += 1

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        self._queue_for(job.priority).appendleft(job)
        self._length += 1

    def peek(self) -> Job:
        """Return the next job without taking it.

        Raises:
            IndexError: The queue is empty.
        """
        return self._by_priority[self._priorities[-1]][0]

    def pop(self) -> Job:
        """Take the next job.

        Raises:
            IndexError: The queue is empty.
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
