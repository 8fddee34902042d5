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
        self._queue_of(job).append(job)

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        self._queue_of(job).appendleft(job)

    def peek(self, full: Container[str] = ()) -> Job | None:
        """Return the next job without taking it; None where there is none but for pools that are `full`."""
        pools = self.pools
        if len(pools) == 1 and not full:
            (queue,) = pools.values()
            return queue.head()
        heads = [queue.head() for name, queue in pools.items() if name not in full]
        return min(heads, key=_turn) if heads else None

    def pop(self, job: Job) -> None:
        """Take the job that `peek` returned."""
        name = job.live.pool
        queue = self.pools[name]
        queue.popleft()
        if not queue.priorities:
            del self.pools[name]

    def count(self, pool: str | None) -> int:
        """Return how many jobs of a pool are queued; None: of all."""
        return sum(len(queue) for name, queue in self.pools.items() if pool in (None, name))

    def _queue_of(self, job: Job) -> deque[Job]:
        name = job.live.pool
        queue = self.pools.get(name)
        if queue is None:
            queue = self.pools[name] = _PoolQueue()
        return queue.of_priority(job.priority)


class _PoolQueue:
    """The jobs of one pool."""

    def __init__(self) -> None:
        self.priorities: list[int] = []
        """The priorities of the jobs that it holds, lowest first."""
        self._by_priority: dict[int, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._by_priority.values())

    def head(self) -> Job:
        return self._by_priority[self.priorities[-1]][0]

    def popleft(self) -> None:
        priority = self.priorities[-1]
        queue = self._by_priority[priority]
        queue.popleft()
        if not queue:
            del self._by_priority[priority]
            self.priorities.pop()

    def of_priority(self, priority: int) -> deque[Job]:
        queue = self._by_priority.get(priority)
        if queue is None:
            queue = self._by_priority[priority] = deque()
            bisect.insort(self.priorities, priority)
        return queue


def _turn(job: Job) -> tuple[int, float]:
    return -job.priority, job.live.queued_at
