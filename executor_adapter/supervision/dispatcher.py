"""Decides which job starts next, and whether there is a slot for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor_adapter.job import Job
from executor_adapter.pools import MemoryGuard, WorkerPool
from executor_adapter.supervision.ready_queue import ReadyQueue
from executor_adapter.supervision.running_attempts import NEVER
from executor_adapter.supervision.tools.rate_limiter import RateLimiter, needs_no_slot
from executor_adapter.worker import lease_time


class Dispatcher:
    """Holds the ready jobs and the slots, and knows what else may hold a job back. Supervisor thread only.

    A slot is taken by each busy worker of the pools, and by each driver that was granted one and has not used it yet.
    """

    def __init__(self, max_workers: int, pools: Mapping[str, WorkerPool]) -> None:
        self.max_workers = max_workers
        self.rate_limiter: RateLimiter | None = None
        self.memory_guard: MemoryGuard | None = None
        self.reserved = 0
        """Slots granted to drivers that have not begun their attempt."""
        self.lent: set[Job] = set()
        """Jobs whose attempt waits for another job. Their slots are free meanwhile, or that job might never get one."""
        self.exclusive: Job | None = None
        """The job that runs alone: no other attempt may start while it runs."""
        self.lease_until = NEVER
        """The `lease_time` from which other hosts may run the jobs of this one, so that nothing may start."""
        self._pools = pools
        self._ready = ReadyQueue()

    @property
    def has_ready(self) -> bool:
        """Whether any job is ready to start."""
        return bool(self._ready)

    def push(self, job: Job) -> None:
        """Queue a job that is ready to start."""
        self._ready.push(job)

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        self._ready.push_front(job)

    def run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> None:
        """Start jobs while there are slots; queue short jobs in workers behind short ones."""
        self._run(start, queue_behind)
        if self.rate_limiter is not None:
            self.rate_limiter.report(self._free_workers)

    def _run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> None:
        ready = self._ready
        pools = self._pools.values()
        memory_is_short = self.memory_guard is not None and self.memory_guard.holds
        while ready:
            job = ready.peek()
            if needs_no_slot(job):
                ready.pop()
                if self.rate_limiter is not None:
                    self.rate_limiter.skip(job)
                continue
            busy = self.reserved - len(self.lent)
            for pool in pools:
                busy += pool.busy
            one_runs_alone = self.exclusive is not None and self.exclusive not in self.lent
            if one_runs_alone or (busy and (memory_is_short or job.live.alone)):
                return
            if busy < self.max_workers:
                ready.pop()
                if self.rate_limiter is None or self.rate_limiter.start(job):
                    if job.live.alone:
                        self.exclusive = job
                    start(job)
            elif self._may_queue_behind(job) and queue_behind(job):
                ready.pop()
            else:
                return

    def _free_workers(self) -> int:
        """Return how many further attempts might start now."""
        busy = self.reserved - len(self.lent) + sum(pool.busy for pool in self._pools.values())
        memory_is_short = self.memory_guard is not None and self.memory_guard.holds
        one_runs_alone = self.exclusive is not None and self.exclusive not in self.lent
        return 0 if one_runs_alone or (busy and memory_is_short) else max(0, self.max_workers - busy)

    @property
    def is_lease_over(self) -> bool:
        """Whether other hosts may run the jobs of this one. The recorder is about to find out if they do."""
        return self.lease_until != NEVER and lease_time() >= self.lease_until

    def _may_queue_behind(self, job: Job) -> bool:
        """Return whether the job may wait in a worker: not if anything else may still hold it back."""
        live = job.live
        limited = self.rate_limiter is not None and self.rate_limiter.limits(job)
        return live.pool in self._pools and live.driver is None and not live.alone and not limited

    def take_back_slot(self, job: Job) -> None:
        """Free the slot of a driver that did not use it, and the worker that was kept for its attempt."""
        self.reserved -= 1
        if (pool := self._pools.get(job.live.pool)) is not None:
            pool.release_worker(job)
        self.attempt_ended(job)

    def attempt_ended(self, job: Job) -> None:
        """Note that an attempt that `run` started has ended, or did not begin."""
        if self.exclusive is job:
            self.exclusive = None
        if self.rate_limiter is not None:
            self.rate_limiter.end(job)
