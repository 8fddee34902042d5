"""Gives jobs what they need beside a slot, of this machine or of a cluster, and keeps those that wait for some."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import (
    CPU,
    GPU,
    LEASING_POOLS,
    Job,
    Shape,
    amount_text,
    did_you_mean,
    shape_of,
    units_of,
)
from executor_adapter.pools import GpuShares, LeasingPool, WorkerPool
from executor_adapter.supervision.tools import Turn, needs_no_slot


class Capacity(NamedTuple):
    """What there is in all: amounts by name, with memory in bytes, and the ids of the GPUs."""

    amounts: Mapping[str, float] = {}
    gpus: tuple[str, ...] = ()


@dataclass(slots=True)
class Allotment:
    """What one job holds."""

    shape: Shape
    gpus: dict[str, int] = field(default_factory=dict)
    """Units of each GPU, by its id."""
    is_cpu_lent: bool = False


class Machine:
    """Counts what is free of this machine. Supervisor thread only, but for `lack_of`."""

    def __init__(self, read_capacity: Callable[[], Capacity]) -> None:
        self._read_capacity = read_capacity
        self._capacity: Capacity | None = None
        self._free: dict[str, int] = {}
        self._gpus = GpuShares()
        self._held: dict[Job, Allotment] = {}

    def lack_of(self, resources: Mapping[str, float]) -> str | None:
        """Return in words of which of these there is never so much; None where there is enough of all."""
        capacity = self.capacity()
        for name, amount in resources.items():
            has = capacity.amounts.get(name, 0)
            if units_of(amount) > units_of(has):
                return _refusal(name, amount, has, capacity)
        return None

    def capacity(self) -> Capacity:
        """Return what there is in all."""
        if self._capacity is None:  # Two threads may both read it, and read the same.
            capacity = self._read_capacity()
            self._free = {name: units_of(amount) for name, amount in capacity.amounts.items()}
            self._gpus = GpuShares(capacity.gpus)
            self._capacity = capacity
        return self._capacity

    def holds(self, job: Job) -> bool:
        """Return whether the job holds something."""
        return job in self._held

    def short_of(self, shape: Shape) -> set[str]:
        """Return the names of which less is free than a shape needs."""
        short = {name for name, units in shape if self._free[name] < units}
        gpus = dict(shape).get(GPU)
        if gpus is not None and GPU not in short and not self._gpus.choose(gpus):
            short.add(GPU)
        return short

    def give(self, job: Job, shape: Shape) -> None:
        """Let the job hold what it needs, which is free."""
        needs = dict(shape)
        gpus = self._gpus.choose(needs[GPU]) if GPU in needs else {}
        for name, units in shape:
            self._free[name] -= units
        self._gpus.take(gpus)
        self._held[job] = Allotment(shape, gpus)

    def release(self, job: Job) -> None:
        """Take back what the job holds, if anything."""
        allotment = self._held.pop(job, None)
        if allotment is not None:
            for name, units in allotment.shape:
                if name != CPU or not allotment.is_cpu_lent:
                    self._free[name] += units
            self._gpus.give_back(allotment.gpus)

    def lend(self, job: Job) -> None:
        """Free the processors of a job that waits for another one, which might never start otherwise."""
        allotment = self._held.get(job)
        if allotment is not None and not allotment.is_cpu_lent:
            allotment.is_cpu_lent = True
            self._free[CPU] += dict(allotment.shape).get(CPU, 0)

    def take_back(self, job: Job) -> None:
        """Take back what was lent. For a moment more processors may be in use than there are."""
        allotment = self._held.get(job)
        if allotment is not None and allotment.is_cpu_lent:
            allotment.is_cpu_lent = False
            self._free[CPU] -= dict(allotment.shape).get(CPU, 0)

    def gpus_of(self, job: Job) -> tuple[str, ...]:
        """Return the ids of the GPUs that the job holds."""
        allotment = self._held.get(job)
        return () if allotment is None else tuple(allotment.gpus)


def _refusal(name: str, amount: float, has: float, capacity: Capacity) -> str:
    needed = amount_text(name, units_of(amount))
    if not has and name != GPU:
        return f"resources: this executor has no {name}: {did_you_mean(name, capacity.amounts)} or set its capacity"
    return (
        f"resources: an attempt needs {needed}, and this executor has {amount_text(name, units_of(has))}: "
        f"ask for less, or set capacity={{{name!r}: ...}}"
    )


Line = tuple[str, Shape]
"""A pool and a shape: jobs of the same wait in one line."""


class ResourceLedger:
    """Gives resources to attempts, and keeps the jobs that wait for some. Supervisor thread only, but for the checks.

    No job overtakes another one that waits for the same resource, unless its priority is higher: otherwise a job that
    needs much would wait for as long as small ones keep coming. A job that waits for one resource holds up no job that
    does not need it. On a cluster, whose engine knows what is free where, each shape is a resource of its own.
    """

    def __init__(self, read_capacity: Callable[[], Capacity], pool_of: Callable[[Job], WorkerPool]) -> None:
        self.waiting = 0
        """How many jobs wait, those that have ended meanwhile included."""
        self.machine = Machine(read_capacity)
        self.lack_of = self.machine.lack_of
        self._pool_of = pool_of
        self._leased: dict[Job, LeasingPool] = {}
        """The jobs for which a pool keeps a lease, or which it runs in one."""
        self._demand: dict[tuple[LeasingPool, Shape], int] = {}
        """For how many attempts leases are wanted, as far as each pool knows."""
        self._lines: dict[Line, list[Turn]] = {}
        """The jobs that wait; each line is a heap."""
        self._wanted: dict[Line, set[Hashable]] = {}
        """What the first job of each line was once short of. It is kept for it, so that its turn comes."""
        self._numbers = itertools.count()
        self.has_leased = False
        """Whether any job has needed a lease yet."""

    # --- from any thread ---

    def needs_of(self, job: Job, pool: str) -> dict[str, int]:
        """Return what each attempt of a job with `resources` takes in this pool, in UNITS.

        Raises:
            InvalidJobError: this machine never has so much. What a cluster may have is known to its pool.
        """
        resources = job.resources or {}
        if pool not in LEASING_POOLS and (lack := self.lack_of(resources)) is not None:
            raise InvalidJobError(lack)
        return {name: units_of(amount) for name, amount in resources.items()}

    # --- on the supervisor's thread ---

    def start(self, job: Job) -> bool:
        """Return whether the job may start; it then holds its resources until `release`. Otherwise it waits."""
        if self.holds(job):
            return True
        line = _line_of(job)
        turn: Turn = (-job.priority, job.live.queued_at, next(self._numbers), job)
        if not self._short_of(line, job) and not self._is_kept(line, turn):
            self._give(line, job)
            return True
        self._join(line, turn)
        return False

    def wait_for_lease(self, job: Job) -> bool:
        """Let a job wait for a lease of its shape; return False if it has one, or needs none.

        It does so before its turn has come, so that what its cluster has for it is not kept from it by other jobs.
        """
        line = _line_of(job)
        if line[0] not in LEASING_POOLS or job in self._leased:
            return False
        self.has_leased = True
        self._join(line, (-job.priority, job.live.queued_at, next(self._numbers), job))
        return True

    def holds(self, job: Job) -> bool:
        """Return whether a job has what it needs."""
        return self.machine.holds(job) or job in self._leased

    def holds_lease(self, job: Job) -> bool:
        """Return whether a lease is kept for a job."""
        return job in self._leased

    def _join(self, line: Line, turn: Turn) -> None:
        heapq.heappush(self._lines.setdefault(line, []), turn)
        self.waiting += 1

    def take_next(self, before: Job | None, has_slot: Callable[[Job], bool]) -> Job | None:
        """Take the first waiting job that fits now, and give it what it needs; None where none fits.

        Args:
            before: a job that starts next otherwise: one with a lower priority than that waits on, and so does one for
                a cluster that came later.
            has_slot: says whether a job's pool has a free slot. Where it has none, the job takes and keeps nothing.
        """
        kept: set[Hashable] = set()
        for line, turns in self._in_turn():
            job = turns[0][-1]
            wanted = self._wanted.setdefault(line, set())
            if before is not None and job.priority < before.priority:
                return None
            if not has_slot(job):
                continue
            came_later = before is not None and turns[0][:2] > (-before.priority, before.live.queued_at)
            if came_later and line[0] in LEASING_POOLS:
                continue
            short = self._short_of(line, job)
            if not short and kept.isdisjoint(_taken_by(line)):
                self._leave_line(line)
                self._give(line, job)
                return job
            wanted |= short
            kept |= wanted
        return None

    def first_with_lease(self) -> Job | None:
        """Return the first waiting job for which its cluster has a lease."""
        jobs = (turns[0][-1] for (pool, _), turns in self._in_turn() if pool in LEASING_POOLS)
        return next((job for job in jobs if not self._short_of(_line_of(job), job)), None)

    def report_demand(self, free_slots: Callable[[str], int]) -> None:
        """Tell the pools of clusters how many of the waiting jobs could start if they had leases.

        `free_slots`: returns how many attempts could start now in a pool. One lease is obtained ahead where it is none.
        """
        leased = [line for line in self._lines if line[0] in LEASING_POOLS]
        if not (leased or self._demand):
            return
        demand = dict.fromkeys(self._demand, 0)
        for line in leased:
            job, count = self._count(line, max(1, free_slots(line[0])))
            if job is not None and (pool := self._leasing_pool(job)) is not None:
                demand[pool, line[1]] = count
        for (pool, shape), count in demand.items():
            if self._demand.get((pool, shape), 0) != count:
                pool.shapes.set_demand(shape, count)
        self._demand = {key: count for key, count in demand.items() if count}

    def _count(self, line: Line, most: int) -> tuple[Job | None, int]:
        """Return a job of a line that still wants a slot, and how many do, up to `most`."""
        found = list(itertools.islice(self._lines[line], most))
        if any(needs_no_slot(turn[-1]) for turn in found):
            # They would be counted until they come to the head of the line.
            turns = [turn for turn in self._lines[line] if not needs_no_slot(turn[-1])]
            heapq.heapify(turns)
            self.waiting -= len(self._lines[line]) - len(turns)
            self._lines[line] = turns
            found = turns[:most]
        return (found[0][-1] if found else None), len(found)

    def release(self, job: Job) -> None:
        """Take back what the job holds, if anything."""
        self.machine.release(job)
        if (pool := self._leased.pop(job, None)) is not None:
            pool.shapes.unreserve(job)

    # --- inside ---

    def _in_turn(self) -> list[tuple[Line, list[Turn]]]:
        return sorted(self._first_of_lines(), key=lambda item: item[1][0])

    def _first_of_lines(self) -> list[tuple[Line, list[Turn]]]:
        """Return the lines that are not empty, without the jobs at their heads that need no slot any more."""
        for line, turns in list(self._lines.items()):
            while turns and needs_no_slot(turns[0][-1]):
                self._leave_line(line)
        return list(self._lines.items())

    def _leave_line(self, line: Line) -> None:
        turns = self._lines[line]
        heapq.heappop(turns)
        self.waiting -= 1
        self._wanted.pop(line, None)
        if not turns:
            del self._lines[line]

    def _is_kept(self, line: Line, turn: Turn) -> bool:
        """Return whether a job that comes before this one waits for anything that this line takes."""
        taken = _taken_by(line)
        for other, turns in self._first_of_lines():
            if turns[0] < turn and (other == line or not taken.isdisjoint(self._wants(other, turns[0][-1]))):
                return True
        return False

    def _wants(self, line: Line, job: Job) -> set[Hashable]:
        """Return what the first job of a line is short of, or was."""
        wanted = self._wanted.setdefault(line, set())
        wanted |= self._short_of(line, job)
        return wanted

    def _short_of(self, line: Line, job: Job) -> set[Hashable]:
        pool, shape = line
        if pool not in LEASING_POOLS:
            return set(self.machine.short_of(shape))
        leasing = self._leasing_pool(job)
        return set() if leasing is None or leasing.shapes.has_lease(shape) else {line}

    def _give(self, line: Line, job: Job) -> None:
        pool, shape = line
        if pool not in LEASING_POOLS:
            self.machine.give(job, shape)
        elif (leasing := self._leasing_pool(job)) is not None:
            leasing.shapes.reserve(job, shape)
            self._leased[job] = leasing

    def _leasing_pool(self, job: Job) -> LeasingPool | None:
        """Return the pool of a job; None where it cannot be made, so that its attempt fails in the usual way."""
        try:
            pool = self._pool_of(job)
        except Exception:
            return None
        return pool if isinstance(pool, LeasingPool) else None


def _line_of(job: Job) -> Line:
    return job.live.pool, shape_of(job.live.resources)


def _taken_by(line: Line) -> set[Hashable]:
    """Return what the jobs of a line take: those of this machine by name, and a lease of their shape elsewhere."""
    pool, shape = line
    return {line} if pool in LEASING_POOLS else {name for name, _ in shape}
