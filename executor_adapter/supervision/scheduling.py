"""Decides which job starts next, and whether there is a slot for it: the queue, the slots, the pools."""

from __future__ import annotations

import bisect
import heapq
import itertools
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field

from executor_adapter.job import LEASING_POOLS, Job, ToolLimit, shape_of
from executor_adapter.pools.base import LeasingPool, WorkerPool
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.memory.guard import MemoryGuard
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.line import Line, LineKey
from executor_adapter.supervision.resources import Capacity, ResourceLedger
from executor_adapter.supervision.tools import RateLimiter
from executor_adapter.worker.wire import lease_time

logger = logging.getLogger("executor_adapter")

NEVER = float("inf")
UNLIMITED = 1 << 30
"""More slots than any program uses."""
SHORTAGE_SECONDS = 10.0
"""Seconds for which jobs wait for a slot, or for what others hold that wait, before the log says so."""
ALL_POOLS = ""
"""Stands for all pools together, where a name of a pool is expected."""
HELD = "held"
"""Stands for what jobs need, and others may hold that wait for jobs, in place of a slot of a pool."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many attempts may run at once: over all pools, and in single ones."""

    total: int = UNLIMITED
    of_pool: Mapping[str, int] = field(default_factory=dict)

    def of(self, pool: str) -> int:
        """Return how many attempts may run in a pool."""
        return self.of_pool.get(pool, self.total)


Place = tuple[int, float, int, Line]
"""What lines are sorted by, a number that no other place has, and the line."""


class ReadyQueue:
    """Holds all jobs that wait for a slot, in lines; the line whose first job has the highest priority is first.

    Of equal ones it is the line whose first job was queued first. A job that ends while it is queued stays here until
    it is the first of its line: removing it earlier would mean a search. Supervisor thread only.
    """

    def __init__(self) -> None:
        self.lines: dict[LineKey, Line] = {}
        """The lines that hold jobs."""
        self.pools: defaultdict[str, list[Place]] = defaultdict(list)
        """The lines of each pool that may be tried, as a heap. A place that is not its line's own any more is void."""
        self._numbers = itertools.count()

    def push(self, job: Job, key: LineKey, *, front: bool = False) -> None:
        """Add a job behind all others of its priority; before them all if it was taken too early (`front`)."""
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(*key)
        jobs = line.jobs.get(job.priority)
        if jobs is None:
            bisect.insort(line.priorities, job.priority)
            jobs = line.jobs[job.priority] = deque()
        jobs.appendleft(job) if front else jobs.append(job)
        line.count += 1
        if line.jobs[line.priorities[-1]][0] is job:
            line.first = job
            if line.count == 1 or line.place is not None:
                self.enter(line)

    def enter(self, line: Line) -> None:
        """Let the first job of a line be tried when its turn comes."""
        places = self.pools[line.pool]
        if len(places) > 2 * len(self.lines) + 8:  # Each job that was pushed and came first has left a void one.
            places[:] = [place for place in places if place[-1].place is place]
            heapq.heapify(places)
        job = line.first
        line.place = place = (-job.priority, job.live.queued_at, next(self._numbers), line)
        heapq.heappush(places, place)

    def first(self, full: Container[str] = ()) -> Line | None:
        """Return the line whose first job starts next; None where there is none but for pools that are `full`."""
        first = None
        for pool, places in self.pools.items():
            if pool in full:
                continue
            while places:
                place = places[0]
                line = place[-1]
                if line.place is not place:
                    heapq.heappop(places)
                elif not line.first.live.wants_slot:
                    self.pop(line)
                else:
                    if first is None or place < first:
                        first = place
                    break
        return first and first[-1]

    def pop(self, line: Line) -> None:
        """Take the first job of a line."""
        jobs = line.jobs[line.priorities[-1]]
        jobs.popleft()
        if not jobs:
            del line.jobs[line.priorities.pop()]
        line.count -= 1
        places = self.pools[line.pool]
        if places and places[0] is line.place:
            heapq.heappop(places)
        line.place = line.wanted = None
        if line.count:
            line.first = line.jobs[line.priorities[-1]][0]
            self.enter(line)
        else:
            del self.lines[line.pool, line.shape, line.tool]

    def ready(self) -> list[Line]:
        """Return the lines that may be tried, each with a first job that needs a slot."""
        for line in list(self.lines.values()):
            while line.place is not None and not line.first.live.wants_slot:
                self.pop(line)
        return [line for line in self.lines.values() if line.place is not None]

    def count(self, line: Line, most: int) -> int:
        """Return how many jobs of a line that is ready need a slot, up to `most`."""
        if not all(job.live.wants_slot for job in itertools.islice(line, most)):
            # They would be counted until they come to the head of the line.
            wanting = [job for job in line if job.live.wants_slot]
            line.jobs = {each: deque(jobs) for each, jobs in itertools.groupby(wanting, lambda job: job.priority)}
            line.priorities, line.count = sorted(line.jobs), len(wanting)
        return min(line.count, most)


class PoolSet:
    """The pools of one executor: each is made when the first job asks for it. Supervisor thread only.

    `on_closed` is called when `close` has ended all workers.
    """

    def __init__(self, make_pool: Callable[[str], WorkerPool], on_closed: Callable[[], None]) -> None:
        self.made: dict[str, WorkerPool] = {}
        self._make_pool = make_pool
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
        loop: SupervisorLoop,
        intake: JobIntake,
        pools: PoolSet,
        limits: SlotLimits,
        *,
        read_capacity: Callable[[], Capacity],
        memory_guard: MemoryGuard | None,
        tool_limits: Mapping[str, ToolLimit],
    ) -> None:
        self.limits = limits
        """No attempt starts beyond these slots. Any thread may replace it."""
        self.queue = ReadyQueue()
        self.resources = ResourceLedger(read_capacity, pools.of)
        self.rate_limiter = RateLimiter(tool_limits, loop, release=self.queue.enter, running_of=intake.running_of)
        self.memory_guard = memory_guard
        self.reserved = 0
        """Slots granted to drivers that have not begun their attempt."""
        self.shortage_due = NEVER
        """When jobs will have waited for a slot for SHORTAGE_SECONDS, if they still do then."""
        self.lent: set[Job] = set()
        """Jobs whose attempt waits for another job. Their slots are free meanwhile, or that job might never get one."""
        self.has_work = False
        """Whether `run` may have something to do: jobs wait, or somebody counts those that do."""
        self.exclusive: Job | None = None
        """The job that runs alone: no other attempt may start while it runs."""
        self._lease_until = NEVER
        """The `lease_time` from which other hosts may run the jobs of this one, so that nothing may start."""
        self._pools = pools.made
        self._short: list[Line] = []
        """The lines that were tried in this turn, and for whose first job resources were short."""
        self._has_leased = False
        """Whether any job has needed a lease yet."""
        self._reserved_of: Counter[str] = Counter()
        self._now = loop.now
        self._full_since: dict[str, float] = {}
        """Since when jobs of a pool wait for a slot, or, for ALL_POOLS, jobs of any pool."""
        self._reported: set[str] = set()

    def set_lease(self, until: float) -> None:
        """Start nothing from this `lease_time` on, unless a later one is set by then."""
        self._lease_until = until

    def push(self, job: Job, *, front: bool = False) -> None:
        """Add a job behind all others of its priority; before them all if it was taken too early (`front`)."""
        self.has_work = True
        live, shape = job.live, None
        if live.resources is not None:
            shape = shape_of(live.resources)
            self._has_leased = self._has_leased or live.pool in LEASING_POOLS
        self.queue.push(job, (live.pool, shape, job.tool_name), front=front)

    def waiting_for_resources(self) -> int:
        """Return how many jobs wait for resources, those that have ended meanwhile included. Any thread may call it."""
        return sum(line.count for line in list(self.queue.lines.values()) if line.wanted is not None)

    def run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> None:
        """Start jobs while there are slots; queue short jobs in workers behind short ones."""
        if self._lease_until != NEVER and lease_time() >= self._lease_until:
            # Other hosts may run the jobs of this one. The recorder is about to find out if they do.
            self._note_shortage(())  # What waits now waits for the store.
            return
        try:
            full = self._run(start, queue_behind)
        finally:
            if self._short:
                self._put_back()
        if self.lent and self.queue.lines and not self._busy():
            full = (HELD,)
        if full or self._full_since:
            self._note_shortage(full)
        if self._has_leased:
            self.resources.report_demand(self._leased_lines(), self._free_workers, self.queue.count)
        if self.rate_limiter.is_used:
            self.rate_limiter.report(self._free_workers, self._is_next)
        self.has_work = bool(self.queue.lines or self._full_since or self._has_leased or self.rate_limiter.is_used)

    def _run(self, start: Callable[[Job], None], queue_behind: Callable[[Job], bool]) -> Collection[str]:
        """Start what may start. Return the pools, or ALL_POOLS, whose jobs wait for a slot and for nothing else."""
        queue, limits, limiter, pools = self.queue, self.limits, self.rate_limiter, self._pools.values()
        full: set[str] = set()
        memory_is_short = self.memory_guard is not None and self.memory_guard.holds
        while (line := queue.first(full)) is not None:
            busy = self.reserved - len(self.lent)
            for pool in pools:
                busy += pool.busy
            if (self.exclusive and self._one_runs_alone()) or (busy and memory_is_short):
                return ()
            if busy < limits.total and (not limits.of_pool or self._busy_in(line.pool) < limits.of(line.pool)):
                if not self._try(line, start, busy):
                    return ()
            elif not (limiter.is_used and limiter.limits(line.first)) and queue_behind(line.first):
                queue.pop(line)
            elif self._has_leased and (leased := self._make_room()) is not None:
                self._try(leased, start, busy)
            elif busy >= limits.total:
                return (ALL_POOLS,)
            else:
                full.add(line.pool)
        return full

    def _try(self, line: Line, start: Callable[[Job], None], busy: int) -> bool:
        """Start the first job of a line unless its resources or its tool hold it back; it takes its share of both.

        Return False where it waits until none of the `busy` attempts runs, and nothing may start before it.
        """
        job = line.first
        if line.shape is not None and not self.resources.fits(line):
            line.place = None
            self._short.append(line)
            return True
        if busy and job.live.alone:
            return False
        if self.rate_limiter.is_used:
            line.place = None
            if not self.rate_limiter.start(job, line):
                return True
        self.queue.pop(line)
        if line.shape is not None:
            self.resources.give(job, line.shape)
        if job.live.alone:
            self.exclusive = job
        start(job)
        if self._short:
            self._put_back()  # A start that failed has freed what it took.
        return True

    def _put_back(self) -> None:
        """Let the lines be tried again whose resources were short."""
        self.resources.kept.clear()
        while self._short:
            self.queue.enter(self._short.pop())

    def _busy_in(self, name: str) -> int:
        pool = self._pools.get(name)
        busy = self._reserved_of[name] + (0 if pool is None else pool.busy)
        return busy - sum(job.live.pool == name for job in self.lent) if self.lent else busy

    def _note_shortage(self, full: Collection[str]) -> None:
        """Say once, for each pool and HELD, that jobs have waited for SHORTAGE_SECONDS, and the way out."""
        now, pools = self._now(), self.queue.pools.keys()
        self._full_since = {name: self._full_since.get(name, now) for name in full}
        self.shortage_due = NEVER
        for name, since in self._full_since.items():
            if name in self._reported:
                continue
            if (line := self.queue.first(pools - {name} if name else ())) is not None:
                since = max(since, line.first.live.queued_at)  # Jobs that follow one another quickly do not wait.
            if now < since + SHORTAGE_SECONDS:
                self.shortage_due = min(self.shortage_due, since + SHORTAGE_SECONDS)
                continue
            self._reported.add(name)
            if name == HELD:
                logger.warning(
                    "%d jobs wait for resources or for their tool, and all that run (%d) wait for other jobs, for %.0f "
                    "s: where these hold what those need, none ends: let a job that waits for others need neither",
                    *(sum(line.count for line in self.queue.lines.values()), len(self.lent), SHORTAGE_SECONDS),
                )
                continue
            waiting = sum(line.count for line in self.queue.ready() if name in (ALL_POOLS, line.pool))
            slots = self.limits.of(name)
            of_pool, way_out = (f" of pool={name!r}", f"max_workers={{{name!r}: ...}}") if name else ("", "max_workers")
            logger.warning(
                "%d jobs%s wait for a slot, the next one for %.0f s, since all %d are in use: raise %s of the executor "
                "if the machine can run more at once",
                *(waiting, of_pool, SHORTAGE_SECONDS, slots, way_out),
            )

    def _make_room(self) -> Line | None:
        """Let an attempt that waits for a lease give up its slot to the first job for which a cluster has another one.

        Return the line of that job; None where there is none.
        """
        if self._is_held_up(1):
            return None
        for line in sorted(self._leased_lines(), key=Line.turn):
            job = line.first
            if self.resources.short_of(line) or job.live.alone:
                continue
            pools = self._pools.values() if not self.limits.of_pool else [self._pools.get(line.pool)]
            if any(isinstance(pool, LeasingPool) and pool.hand_back_waiting(job) for pool in pools):
                return line
        return None

    def _leased_lines(self) -> list[Line]:
        return [line for line in self.queue.ready() if line.shape is not None and line.pool in LEASING_POOLS]

    def _is_held_up(self, busy: int) -> bool:
        """Return whether nothing may start beside what is `busy`, whatever slots there are."""
        is_short = self.memory_guard is not None and self.memory_guard.holds
        return self._one_runs_alone() or (busy > 0 and is_short)

    def _one_runs_alone(self) -> bool:
        return self.exclusive is not None and self.exclusive not in self.lent

    def _busy(self) -> int:
        """Return how many attempts run, but for those that wait for other jobs."""
        return self.reserved - len(self.lent) + sum(each.busy for each in self._pools.values())

    def _free_workers(self, pool: str) -> int:
        """Return how many further attempts might start now in a pool."""
        if self._is_held_up(busy := self._busy()):
            return 0
        return max(0, min(self.limits.total - busy, self.limits.of(pool) - self._busy_in(pool)))

    def _is_next(self, line: Line) -> bool:
        """Return whether the first job of a line, which may be held back, comes before all that share its slots."""
        first = self.queue.first(self.queue.pools.keys() - {line.pool} if self.limits.of_pool else ())
        return line.count > 0 and (first is None or line.turn() <= first.turn())

    def reserve(self, job: Job) -> None:
        """Take a slot for a driver that has not begun its attempt."""
        self.reserved += 1
        self._reserved_of[job.live.pool] += 1

    def unreserve(self, job: Job) -> None:
        """Free the slot that `reserve` took: the attempt begins, and its worker takes one, or it never will."""
        self.reserved -= 1
        self._reserved_of[job.live.pool] -= 1
        self.take_back(job)

    def lend(self, job: Job) -> None:
        """Free the slot and the processors of a job that waits for another one, which might never start otherwise."""
        self.lent.add(job)
        self.resources.machine.lend(job)

    def take_back(self, job: Job) -> None:
        """Take back what was lent."""
        self.lent.discard(job)
        self.resources.machine.take_back(job)

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
