"""Which job starts next, and whether there is a slot for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from executor_adapter.job.model import Job
from executor_adapter.pools.base import WorkerPool
from executor_adapter.supervision.rate_limiter import Throttle, wants_no_start
from executor_adapter.supervision.ready_queue import ReadyQueue


class Dispatcher:
    """Jobs that are ready, the slots, and what else may hold a job back. The supervisor's own.

    A slot is held by each busy worker of the pools, and by each driver that was granted one and has not used it yet.
    """

    def __init__(self, max_workers: int, pools: Mapping[str, WorkerPool]) -> None:
        self.max_workers = max_workers
        self.throttle: Throttle | None = None
        self.reserved = 0
        """Slots granted to drivers that have not begun their attempt."""
        self.lent: set[Job] = set()
        """Those whose attempt waits for another job: its slot is free meanwhile, or that one might never have any."""
        self.exclusive: Job | None = None
        """The job beside whose attempt no other may start."""
        self._pools = pools
        self._ready = ReadyQueue()

    def push(self, job: Job) -> None:
        self._ready.push(job)

    def push_front(self, job: Job) -> None:
        """Put a job back that was taken too early: before all others of its priority."""
        self._ready.push_front(job)

    def run(self, start: Callable[[Job], None], start_behind: Callable[[Job], bool]) -> None:
        """Start what there are slots for; lay short jobs ready behind short ones."""
        ready = self._ready
        pools = self._pools.values()
        while ready:
            job = ready.peek()
            if wants_no_start(job):
                ready.pop()
                if self.throttle is not None:
                    self.throttle.passed_over(job)
                continue
            busy = self.reserved - len(self.lent)
            for pool in pools:
                busy += pool.busy
            if (self.exclusive is not None and self.exclusive not in self.lent) or (job.live.alone and busy):
                return
            if busy < self.max_workers:
                ready.pop()
                if self.throttle is None or self.throttle.start(job):
                    if job.live.alone:
                        self.exclusive = job
                    start(job)
            elif self._may_follow(job) and start_behind(job):
                ready.pop()
            else:
                return

    def _may_follow(self, job: Job) -> bool:
        """Whether the job may lie ready behind another: not one that something else may still hold back."""
        live = job.live
        limited = self.throttle is not None and self.throttle.limits(job)
        return live.pool in self._pools and live.driver is None and not live.alone and not limited

    def attempt_over(self, job: Job) -> None:
        """What `run` let start is over, or did not begin after all."""
        if self.exclusive is job:
            self.exclusive = None
        if self.throttle is not None:
            self.throttle.end(job)
