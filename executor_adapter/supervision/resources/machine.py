"""What the executor's machine has beside slots, and who holds it: processors, GPUs, memory and what users count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.job import CPU, GPU, Job, Shape, amount_text, did_you_mean, units_of
from executor_adapter.pools import GpuShares


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
        capacity = self._known_capacity()
        for name, amount in resources.items():
            has = capacity.amounts.get(name, 0)
            if units_of(amount) > units_of(has):
                return _refusal(name, amount, has, capacity)
        return None

    def _known_capacity(self) -> Capacity:
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
