"""Decides which job starts next, and whether there is a slot for it: the queue, the slots, the pools."""

from __future__ import annotations

import bisect
import functools
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field

from executor_adapter.job import TERMINAL, Job, ToolLimit
from executor_adapter.pools import LeasingPool, MemoryGuard, WorkerPool
from executor_adapter.supervision.resources import Capacity, ResourceLedger
from executor_adapter.supervision.tools import RateLimiter
from executor_adapter.worker import lease_time

logger = logging.getLogger("executor_adapter")

NEVER = float("inf")
UNLIMITED = 1 << 30
"""More slots than any program uses."""
SHORTAGE_SECONDS = 10.0
"""Seconds for which jobs wait for a slot before the log says so."""
ALL_POOLS = ""
"""Stands for all pools together, where a name of a pool is expected."""
MAX_QUEUED_BEHIND_SECONDS = 0.05
"""Max seconds that a job waits in a worker behind a running one; then it is taken back for another worker."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many attempts may run at once: over all pools, and in single ones."""

    total: int = UNLIMITED
    of_pool: Mapping[str, int] = field(default_factory=dict)

    def of(self, pool: str) -> int:
        """Return how many attempts may run in a pool."""
        return self.of_pool.get(pool, self.total)


class ReadyQueue:
    """Holds jobs that are ready to start: higher priority first, then in order of arrival. Supervisor thread only.

    Each pool has a queue of its own, so that jobs of a pool without a free slot hold up those of no other. A job that
    ends while it is queued stays here until its turn, when the dispatcher skips it: removing it earlier would mean a
    search.
    """

    def __init__(self) -> None:
        self.pools: defaultdict[str, _PoolQueue] = defaultdict(_PoolQueue)
        """The queues that hold jobs, by the name of their pool."""

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job behind all others of its priority; before them all if it was taken too early (`front`)."""
        jobs = self.pools[job.live.pool][job.priority]
        jobs.appendleft(job) if front else jobs.append(job)

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
            del queue[queue.priorities.pop()]
            if not queue:
                del self.pools[job.live.pool]

    def count(self, pool: str | None) -> int:
        """Return how many jobs of a pool are queued; None: of all."""
        return sum(sum(map(len, queue.values())) for name, queue in self.pools.items() if pool in (None, name))


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


class PoolSet:
    """The pools of one executor: each is made when the first job asks for it. Supervisor thread only.

    `on_closed` is called when `close` has ended all workers.
    """

    def __init__(
        self, make_pool: Callable[[str], WorkerPool], now: Callable[[], float], on_closed: Callable[[], None]
    ) -> None:
        self.made: dict[str, WorkerPool] = {}
        self.next_check_at = NEVER
        """The next time to check for jobs that wait behind a job that takes longer than expected."""
        self._make_pool = make_pool
        self._now = now
        self._on_closed = on_closed
        self._to_close = 0
        self._lease_until = NEVER

    def of(self, job: Job) -> WorkerPool:
        """Return the pool that the job runs in."""
        name = job.live.pool
        pool = self.made.get(name)
        if pool is None:
            pool = self.made[name] = self._make_pool(name)
            pool.set_lease(self._lease_until)
        return pool

    def expect_overdue(self) -> None:
        """Check in a moment for jobs that wait behind a job that takes longer than expected."""
        self.next_check_at = self._now() + MAX_QUEUED_BEHIND_SECONDS

    def hand_back_overdue(self, now: float) -> None:
        """Take back jobs that wait behind a job that takes longer than expected."""
        waiting = [pool.hand_back_queued(now - MAX_QUEUED_BEHIND_SECONDS) for pool in self.made.values()]
        self.next_check_at = now + MAX_QUEUED_BEHIND_SECONDS if any(waiting) else NEVER

    def resize(self, limits: SlotLimits) -> None:
        """Keep workers for so many attempts at once, and take back what would start beyond that."""
        pools = dict(self.made)
        for name, pool in pools.items():
            pool.resize(limits.of(name))

        def is_over(name: str) -> bool:
            return pools[name].busy > limits.of(name) or sum(pool.busy for pool in pools.values()) > limits.total

        for name, pool in pools.items():
            if is_over(name):
                pool.hand_back_queued(NEVER)
                for assignment in pool.unstarted():
                    if assignment.job.live.driver is None and is_over(name):
                        pool.recall(assignment)

    def set_lease(self, until: float) -> None:
        """Let the pools end their attempts at this `lease_time`, unless a later one is set by then."""
        self._lease_until = until
        for pool in self.made.values():
            pool.set_lease(until)

    def close(self) -> None:
        """End all workers. Calling it again meanwhile does nothing."""
        if not self._to_close:
            self._to_close = len(self.made) + 1
            for pool in self.made.values():
                pool.close(self._one_closed)
            self._one_closed()

    def _one_closed(self) -> None:
        self._to_close -= 1
        if not self._to_close:
            self._on_closed()

    def stats(self) -> Mapping[str, int]:
        """Return the busy workers and the abandoned attempts over all pools. Any thread may call it."""
        pools = list(self.made.values())
        return {
            "workers_busy": sum(pool.busy for pool in pools),
            "abandoned_threads": sum(getattr(pool, "abandoned", 0) for pool in pools),
        }


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
        *,
        memory_guard: MemoryGuard | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        call_at: Callable[[float, Callable[[], None]], object] = lambda when, call: None,
        running_of: Callable[[str], Iterable[Job]] = lambda tool: (),
    ) -> None:
        self.limits = limits
        self.resources = ResourceLedger(read_capacity, pool_of or (lambda job: pools[job.live.pool]))
        release = functools.partial(self.push, front=True)
        self.rate_limiter = RateLimiter(
            tool_limits or {}, now=now, call_at=call_at, release=release, running_of=running_of
        )
        self.memory_guard = memory_guard
        self.reserved = 0
        """Slots granted to drivers that have not begun their attempt."""
        self.shortage_due = NEVER
        """When jobs will have waited for a slot for SHORTAGE_SECONDS, if they still do then."""
        self.lent: set[Job] = set()
        """Jobs whose attempt waits for another job. Their slots are free meanwhile, or that job might never get one."""
        self.has_work = False
        """Whether `run` may have something to do: jobs are ready or wait, or somebody counts those that do."""
        self.exclusive: Job | None = None
        """The job that runs alone: no other attempt may start while it runs."""
        self._lease_until = NEVER
        """The `lease_time` from which other hosts may run the jobs of this one, so that nothing may start."""
        self._pools = pools
        self._ready = ReadyQueue()
        self._reserved_of: Counter[str] = Counter()
        self._now = now
        self._full_since: dict[str, float] = {}
        """Since when jobs of a pool wait for a slot, or, for ALL_POOLS, jobs of any pool."""
        self._reported: set[str] = set()

    def set_limits(self, limits: SlotLimits) -> None:
        """Start no attempt beyond these slots. Any thread may call it."""
        self.limits = limits

    def set_lease(self, until: float) -> None:
        """Start nothing from this `lease_time` on, unless a later one is set by then."""
        self._lease_until = until

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job behind all others of its priority; before them all if it was taken too early (`front`)."""
        self.has_work = True
        if job.live.resources is None or not self.resources.wait_for_lease(job):
            self._ready.push(job, front=front)

    @property
    def has_ready(self) -> bool:
        """Whether any job is ready to start."""
        return bool(self._ready.pools) or bool(self.resources.waiting)

    def run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> None:
        """Start jobs while there are slots; queue short jobs in workers behind short ones."""
        if self._lease_until != NEVER and lease_time() >= self._lease_until:
            # Other hosts may run the jobs of this one. The recorder is about to find out if they do.
            self._note_shortage(())  # What waits now waits for the store.
            return
        full = self._run(start, queue_behind)
        if full or self._full_since:
            self._note_shortage(full)
        if self.resources.has_leased:
            self.resources.report_demand(self._free_workers)
        if self.rate_limiter.is_used:
            self.rate_limiter.report(self._free_workers)
        counts = self.resources.has_leased or self.rate_limiter.is_used
        self.has_work = bool(self._ready.pools or self.resources.waiting or self._full_since or counts)

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
            if (self.exclusive and self._one_runs_alone()) or (busy and (memory_is_short or job.live.alone)):
                return ()
            if busy < limits.total and (not limits.of_pool or self._has_slot(job)):
                # One that holds its resources starts before another one is given some: the slot may be its last.
                if resources.waiting and not resources.holds(job) and self._queue_fitting(job):
                    continue
                ready.pop(job)
                self._try_start(job, start)
            elif not (self.rate_limiter.is_used and self.rate_limiter.limits(job)) and queue_behind(job):
                ready.pop(job)
                if self.rate_limiter.is_used:
                    self.rate_limiter.skip(job)
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
            elif job.state.status in TERMINAL or (job.live.driver is not None and not job.live.driver.wants_slot):
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
            self.resources.release(job)
        if self.rate_limiter.is_used:
            self.rate_limiter.skip(job)

    def _queue_fitting(self, before: Job | None) -> bool:
        """Queue the next job whose resources are free now in front of `before`; return False if there is none."""
        job = self.resources.take_next(before, self._has_slot)
        if job is not None:
            self._ready.push(job, front=True)
        return job is not None

    def _try_start(self, job: Job, start: Callable[[Job], None]) -> None:
        """Start a job unless its resources or its tool hold it back; it takes its share of both."""
        needs_resources = job.live.resources is not None
        if needs_resources and not self.resources.start(job):
            if self.rate_limiter.is_used:
                self.rate_limiter.skip(job)
        elif not self.rate_limiter.is_used or self.rate_limiter.start(job):
            if job.live.alone:
                self.exclusive = job
            start(job)
        elif needs_resources:
            self.resources.release(job)

    def _free_workers(self, pool: str = ALL_POOLS) -> int:
        """Return how many further attempts might start now, in one pool or in all of them."""
        busy, limits = self.reserved - len(self.lent) + sum(each.busy for each in self._pools.values()), self.limits
        if self._is_held_up(busy):
            return 0
        free, pools = max(0, limits.total - busy), (pool,) if pool else limits.of_pool
        return min(free, sum(max(0, limits.of(name) - self._busy_in(name)) for name in pools)) if pools else free

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
            self.resources.release(job)
        if self.rate_limiter.is_used:
            self.rate_limiter.attempt_ended(job)
