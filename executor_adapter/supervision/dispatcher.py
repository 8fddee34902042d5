"""Decides which job starts next, and whether there is a slot for it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from executor_adapter.job import Job
from executor_adapter.pools import LeasingPool, MemoryGuard, WorkerPool
from executor_adapter.supervision.ready_queue import ReadyQueue
from executor_adapter.supervision.resources.ledger import ResourceLedger
from executor_adapter.supervision.resources.machine import Capacity
from executor_adapter.supervision.running_attempts import NEVER
from executor_adapter.supervision.tools.rate_limiter import RateLimiter, needs_no_slot
from executor_adapter.worker import lease_time

logger = logging.getLogger("executor_adapter")

UNLIMITED = 1 << 30
"""More slots than any program uses."""
SHORTAGE_SECONDS = 10.0
"""Seconds for which jobs wait for a slot before the log says so."""
ALL_POOLS = ""
"""Stands for all pools together, where a name of a pool is expected."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many attempts may run at once: over all pools, and in single ones."""

    total: int = UNLIMITED
    of_pool: Mapping[str, int] = field(default_factory=dict)

    def of(self, pool: str) -> int:
        """Return how many attempts may run in a pool."""
        return self.of_pool.get(pool, self.total)


class Dispatcher:
    """Holds the ready jobs and the slots, and knows what else may hold a job back. Supervisor thread only.

    A slot is taken by each busy worker of the pools, and by each driver that was granted one and has not used it yet.
    """

    def __init__(
        self,
        limits: SlotLimits,
        pools: Mapping[str, WorkerPool],
        read_capacity: Callable[[], Capacity] = Capacity,
        pool_of: Callable[[Job], WorkerPool] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.resources = ResourceLedger(read_capacity, pool_of)
        self.rate_limiter: RateLimiter | None = None
        self.memory_guard: MemoryGuard | None = None
        self.reserved = 0
        """Slots granted to drivers that have not begun their attempt."""
        self.shortage_due = NEVER
        """When jobs will have waited for a slot for SHORTAGE_SECONDS, if they still do then."""
        self.lent: set[Job] = set()
        """Jobs whose attempt waits for another job. Their slots are free meanwhile, or that job might never get one."""
        self.exclusive: Job | None = None
        """The job that runs alone: no other attempt may start while it runs."""
        self.lease_until = NEVER
        """The `lease_time` from which other hosts may run the jobs of this one, so that nothing may start."""
        self._pools = pools
        self._ready = ReadyQueue()
        self._reserved_of: Counter[str] = Counter()
        self._now = now
        self._full_since: dict[str, float] = {}
        """Since when jobs of a pool wait for a slot, or, for ALL_POOLS, jobs of any pool."""
        self._reported: set[str] = set()

    def push(self, job: Job) -> None:
        """Add a job behind all others of its priority."""
        if job.live.resources is None or not self.resources.wait_for_lease(job):
            self._ready.push(job)

    def push_front(self, job: Job) -> None:
        """Put back a job that was taken too early: before all others of its priority."""
        if job.live.resources is None or not self.resources.wait_for_lease(job):
            self._ready.push_front(job)

    @property
    def has_ready(self) -> bool:
        """Whether any job is ready to start."""
        return bool(self._ready.pools) or bool(self.resources.waiting)

    def run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> None:
        """Start jobs while there are slots; queue short jobs in workers behind short ones."""
        if self._is_lease_over:
            self._note_shortage(())  # What waits now waits for the store.
            return
        full = self._run(start, queue_behind)
        if full or self._full_since:
            self._note_shortage(full)
        if self.resources.has_leased:
            self.resources.report_demand(self._free_workers)
        if self.rate_limiter is not None:
            self.rate_limiter.report(self._free_workers)

    def _run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> Collection[str]:
        """Start what may start. Return the pools, or ALL_POOLS, whose jobs wait for a slot and for nothing else."""
        ready, resources, limits = self._ready, self.resources, self.limits
        pools = self._pools.values()
        full: set[str] = set()
        memory_is_short = self.memory_guard is not None and self.memory_guard.holds
        while (job := self._next(full)) is not None:
            busy = self.reserved - len(self.lent)
            for pool in pools:
                busy += pool.busy
            if self._one_runs_alone() or (busy and (memory_is_short or job.live.alone)):
                return ()
            if busy < limits.total and (not limits.of_pool or self._has_slot(job)):
                # One that holds its resources starts before another one is given some: the slot may be its last.
                if resources.waiting and not resources.holds(job) and self._queue_fitting(job):
                    continue
                ready.pop(job)
                if self._may_start(job):
                    start(job)
            elif self._may_queue_behind(job) and queue_behind(job):
                self._skip(job)
            elif resources.has_leased and self._make_room(job):
                continue
            elif busy >= limits.total:
                return (ALL_POOLS,)
            else:
                full.add(job.live.pool)
        return full

    def _next(self, full: Collection[str]) -> Job | None:
        """Return the job that starts next, but for those of pools that are `full`; None where there is none."""
        ready, resources = self._ready, self.resources
        while True:
            job = ready.peek(full)
            if job is None:
                if not (resources.waiting and self._queue_waiting()):
                    return None
            elif needs_no_slot(job):
                self._skip(job)
            else:
                return job

    def _has_slot(self, job: Job) -> bool:
        """Return whether a slot of the job's own pool is free, whatever is busy elsewhere."""
        name = job.live.pool
        return self._busy_in(name) < self.limits.of(name)

    def _busy_in(self, name: str) -> int:
        pool = self._pools.get(name)
        busy = self._reserved_of[name] + (0 if pool is None else pool.busy)
        return busy - sum(job.live.pool == name for job in self.lent) if self.lent else busy

    def _note_shortage(self, full: Collection[str]) -> None:
        """Say once, for each pool, that its next job has waited for a slot for SHORTAGE_SECONDS, and what to raise."""
        now, pools = self._now(), self._ready.pools.keys()
        self._full_since = {name: self._full_since.get(name, now) for name in full}
        self.shortage_due = NEVER
        for name, since in self._full_since.items():
            if name in self._reported:
                continue
            if (first := self._ready.peek(pools - {name} if name else ())) is not None:
                since = max(since, first.live.queued_at)  # Jobs that follow one another quickly do not wait.
            if now < since + SHORTAGE_SECONDS:
                self.shortage_due = min(self.shortage_due, since + SHORTAGE_SECONDS)
                continue
            self._reported.add(name)
            waiting, slots = self._ready.count(name or None), self.limits.of(name)
            of_pool, way_out = (f" of pool={name!r}", f"max_workers={{{name!r}: ...}}") if name else ("", "max_workers")
            logger.warning(
                "%d jobs%s wait for a slot, the next one for %.0f s, since all %d are in use: raise %s of the executor "
                "if the machine can run more at once",
                *(waiting, of_pool, SHORTAGE_SECONDS, slots, way_out),
            )

    def _queue_waiting(self) -> bool:
        """Queue a job that waits for resources and could start now, where no other job is ready."""
        return self._queue_fitting(None) if self._free_workers() else self._make_room(None)

    def _make_room(self, ready: Job | None) -> bool:
        """Let a job for which a cluster has a lease start in the slot of an attempt that waits for another lease.

        `ready`: the job that starts next otherwise.
        """
        has_lease = ready is not None and self.resources.holds_lease(ready)
        job = ready if has_lease else self.resources.first_with_lease()
        if job is None or self._is_held_up(1):
            return False
        if any(isinstance(pool, LeasingPool) and pool.hand_back_waiting(job) for pool in self._pools.values()):
            return has_lease or self._queue_fitting(None)
        return False

    def _is_held_up(self, busy: int) -> bool:
        """Return whether nothing may start beside what is `busy`, whatever slots there are."""
        is_short = self.memory_guard is not None and self.memory_guard.holds
        return self._one_runs_alone() or (busy > 0 and is_short)

    def _one_runs_alone(self) -> bool:
        return self.exclusive is not None and self.exclusive not in self.lent

    def _skip(self, job: Job) -> None:
        """Drop a queued job that does not ask for a slot, or not any more: the next one of its tool follows."""
        self._ready.pop(job)
        if job.live.resources is not None:
            self.resources.end(job)
        if self.rate_limiter is not None:
            self.rate_limiter.skip(job)

    def _queue_fitting(self, before: Job | None) -> bool:
        """Queue the next job whose resources are free now in front of `before`; return False if there is none."""
        job = self.resources.take_next(before, self._has_slot)
        if job is not None:
            self._ready.push_front(job)
        return job is not None

    def _may_start(self, job: Job) -> bool:
        """Return whether neither its resources nor its tool hold the job back; it then takes its share of both."""
        needs_resources = job.live.resources is not None
        if needs_resources and not self.resources.start(job):
            if self.rate_limiter is not None:
                self.rate_limiter.skip(job)
            return False
        if self.rate_limiter is None or self.rate_limiter.start(job):
            if job.live.alone:
                self.exclusive = job
            return True
        if needs_resources:
            self.resources.end(job)
        return False

    def _free_workers(self, pool: str = ALL_POOLS) -> int:
        """Return how many further attempts might start now, in one pool or in all of them."""
        busy, limits = self.reserved - len(self.lent) + sum(each.busy for each in self._pools.values()), self.limits
        if self._is_held_up(busy):
            return 0
        free, pools = max(0, limits.total - busy), (pool,) if pool else limits.of_pool
        return min(free, sum(max(0, limits.of(name) - self._busy_in(name)) for name in pools)) if pools else free

    @property
    def _is_lease_over(self) -> bool:
        """Whether other hosts may run the jobs of this one. The recorder is about to find out if they do."""
        return self.lease_until != NEVER and lease_time() >= self.lease_until

    def _may_queue_behind(self, job: Job) -> bool:
        """Return whether the job may wait in a worker: not if anything else may still hold it back."""
        live = job.live
        limited = self.rate_limiter is not None and self.rate_limiter.limits(job)
        is_plain = live.driver is None and live.resources is None and not live.alone
        return live.pool in self._pools and is_plain and not limited

    def reserve(self, job: Job) -> None:
        """Take a slot for a driver that has not begun its attempt."""
        self.reserved += 1
        self._reserved_of[job.live.pool] += 1

    def unreserve(self, job: Job) -> None:
        """Free the slot that `reserve` took: the attempt begins, and its worker takes one, or it never will."""
        self.reserved -= 1
        self._reserved_of[job.live.pool] -= 1

    def take_back_slot(self, job: Job) -> None:
        """Free the slot of a driver that did not use it, and the worker that was kept for its attempt."""
        self.unreserve(job)
        if (pool := self._pools.get(job.live.pool)) is not None:
            pool.release_worker(job)
        self.attempt_ended(job)

    def attempt_ended(self, job: Job) -> None:
        """Note that an attempt that `run` started has ended, or did not begin."""
        if self.exclusive is job:
            self.exclusive = None
        if job.live.resources is not None:
            self.resources.end(job)
        if self.rate_limiter is not None:
            self.rate_limiter.end(job)
