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
        self.priorities: list[int] = []
        """The priorities of the jobs that it holds, lowest first; empty where it holds none."""
        self._by_priority: dict[int, deque[Job]] = {}

    def push(self, job: Job) -> None:
        """Add a job behind all others of its priority."""
        queue = self._by_priority.get(job.priority)
        if queue is None:
            queue = self._new_queue(job.priority)
        queue.append(job)

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        queue = self._by_priority.get(job.priority)
        if queue is None:
            queue = self._new_queue(job.priority)
        queue.appendleft(job)

    def peek(self) -> Job:
        """Return the next job without taking it.

        Raises:
            IndexError: The queue is empty.
        """
        return self._by_priority[self.priorities[-1]][0]

    def pop(self) -> Job:
        """Take the next job.

        Raises:
            IndexError: The queue is empty.
        """
        priority = self.priorities[-1]
        queue = self._by_priority[priority]
        job = queue.popleft()
        if not queue:
            del self._by_priority[priority]
            self.priorities.pop()
        return job

    def _new_queue(self, priority: int) -> deque[Job]:
        queue = self._by_priority[priority] = deque()
        bisect.insort(self.priorities, priority)
        return queue
