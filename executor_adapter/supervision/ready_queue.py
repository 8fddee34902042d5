"""The queue of jobs that are ready to start."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Container

from executor_adapter.job import Job


class ReadyQueue:
    """Holds jobs that are ready to start: higher priority first, then in order of arrival. Supervisor thread only.

    Each pool has a queue of its own, so that jobs of a pool without a free slot hold up those of no other. A job that
    ends while it is queued stays here until its turn, when the dispatcher skips it: removing it earlier would mean a
    search.
    """

    def __init__(self) -> None:
        self.pools: dict[str, _PoolQueue] = {}
        """The queues that hold jobs, by the name of their pool."""

    def push(self, job: Job) -> None:
        """Add a job behind all others of its priority."""
        name = job.live.pool
        (self.pools.get(name) or self._add_pool(name))[job.priority].append(job)

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        name = job.live.pool
        (self.pools.get(name) or self._add_pool(name))[job.priority].appendleft(job)

    def peek(self, full: Container[str] = ()) -> Job | None:
        """Return the next job without taking it; None where there is none but for pools that are `full`."""
        first: Job | None = None
        for name, queue in self.pools.items():
            if name not in full:
                job = queue[queue.priorities[-1]][0]
                if first is None or _turn(job) < _turn(first):
                    first = job
        return first

    def pop(self, job: Job) -> None:
        """Take the job that `peek` returned."""
        queue = self.pools[job.live.pool]
        jobs = queue[job.priority]
        jobs.popleft()
        if not jobs:
            self._drop_priority(job)

    def count(self, pool: str | None) -> int:
        """Return how many jobs of a pool are queued; None: of all."""
        return sum(sum(map(len, queue.values())) for name, queue in self.pools.items() if pool in (None, name))

    def _add_pool(self, name: str) -> _PoolQueue:
        return self.pools.setdefault(name, _PoolQueue())

    def _drop_priority(self, job: Job) -> None:
        queue = self.pools[job.live.pool]
        del queue[queue.priorities.pop()]
        if not queue:
            del self.pools[job.live.pool]


class _PoolQueue(dict[int, deque[Job]]):
    """The jobs of one pool, by their priority."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities: list[int] = []
        """The priorities of the jobs that it holds, lowest first."""

    def __missing__(self, priority: int) -> deque[Job]:
        bisect.insort(self.priorities, priority)
        self[priority] = deque()
        return self[priority]


def _turn(job: Job) -> tuple[int, float]:
    return -job.priority, job.live.queued_at
