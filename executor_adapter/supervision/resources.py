"""Gives jobs what they need beside a slot, of this machine or of a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import CPU, GPU, LEASING_POOLS, Job, Shape, amount_text, did_you_mean, units_of
from executor_adapter.pools.base import LeasingPool, WorkerPool
from executor_adapter.pools.gpus import GpuShares
from executor_adapter.supervision.line import Line


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


class ResourceLedger:
    """Gives resources to attempts. Supervisor thread only, but for the checks.

    No job overtakes another one that waits for the same resource, unless its priority is higher: otherwise a job that
    needs much would wait for as long as small ones keep coming. A job that waits for one resource holds up no job that
    does not need it. On a cluster, whose engine knows what is free where, each shape is a resource of its own.
    """

    def __init__(self, read_capacity: Callable[[], Capacity], pool_of: Callable[[Job], WorkerPool]) -> None:
        self.machine = Machine(read_capacity)
        self.kept: set[Hashable] = set()
        """What is kept for the jobs that were tried in this turn."""
        self._pool_of = pool_of
        self._leased: dict[Job, LeasingPool] = {}
        """The jobs that a pool runs in a lease."""
        self._demand: Counter[tuple[LeasingPool, Shape]] = Counter()
        """For how many attempts leases are wanted, as far as each pool knows."""

    # --- from any thread ---

    def needs_of(self, job: Job, pool: str) -> dict[str, int]:
        """Return what each attempt of a job with `resources` takes in this pool, in UNITS.

        Raises:
            InvalidJobError: this machine never has so much. What a cluster may have is known to its pool.
        """
        resources = job.resources or {}
        if pool not in LEASING_POOLS and (lack := self.machine.lack_of(resources)) is not None:
            raise InvalidJobError(lack)
        return {name: units_of(amount) for name, amount in resources.items()}

    # --- on the supervisor's thread ---

    def fits(self, line: Line) -> bool:
        """Return whether what the first job of a line needs is free, and not kept for one before it.

        Otherwise what it is short of, or once was, is kept for it, so that its turn comes.
        """
        short = self.short_of(line)
        if not short and self.kept.isdisjoint(_taken_by(line)):
            line.wanted = None
            return True
        line.wanted = short if line.wanted is None else line.wanted | short
        self.kept |= line.wanted
        return False

    def short_of(self, line: Line) -> frozenset[Hashable]:
        """Return what the first job of a line needs and is not free: names, or a lease of its shape."""
        assert line.shape is not None, "it waits for resources"
        if line.pool not in LEASING_POOLS:
            return frozenset(self.machine.short_of(line.shape))
        pool = self._leasing_pool(line.first)
        return frozenset() if pool is None or pool.shapes.has_lease(line.shape) else _taken_by(line)

    def give(self, job: Job, shape: Shape) -> None:
        """Let a job hold what it needs, which is free, until `release`."""
        if job.live.pool not in LEASING_POOLS:
            self.machine.give(job, shape)
        elif (pool := self._leasing_pool(job)) is not None:
            pool.shapes.reserve(job, shape)
            self._leased[job] = pool

    def release(self, job: Job) -> None:
        """Take back what the job holds, if anything."""
        self.machine.release(job)
        if (pool := self._leased.pop(job, None)) is not None:
            pool.shapes.unreserve(job)

    def report_demand(
        self, lines: Iterable[Line], free_slots: Callable[[str], int], count: Callable[[Line, int], int]
    ) -> None:
        """Tell the pools of clusters how many of the waiting jobs could start if they had leases.

        Args:
            lines: those that wait for leases.
            free_slots: returns how many attempts could start now in a pool. One lease is obtained ahead where it is
                none.
            count: returns how many jobs of a line want a slot, up to a number.
        """
        demand: Counter[tuple[LeasingPool, Shape]] = Counter()
        for line in lines:
            if line.shape is not None and (pool := self._leasing_pool(line.first)) is not None:
                most = max(1, free_slots(line.pool))
                demand[pool, line.shape] = min(most, demand[pool, line.shape] + count(line, most))
        for pool, shape in demand | self._demand:
            if demand[pool, shape] != self._demand[pool, shape]:
                pool.shapes.set_demand(shape, demand[pool, shape])
        self._demand = demand

    def _leasing_pool(self, job: Job) -> LeasingPool | None:
        """Return the pool of a job; None where it cannot be made, so that its attempt fails in the usual way."""
        try:
            pool = self._pool_of(job)
        except Exception:
            return None
        return pool if isinstance(pool, LeasingPool) else None


def _taken_by(line: Line) -> frozenset[Hashable]:
    """Return what the jobs of a line take: those of this machine by name, and a lease of their shape elsewhere."""
    if line.pool in LEASING_POOLS:
        return frozenset({(line.pool, line.shape)})
    return frozenset(name for name, _ in line.shape or ())
