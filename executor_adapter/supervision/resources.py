"""What the executor's machine has beside slots, and who holds it: processors, GPUs, memory and what users count."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import CPU, GPU, UNITS, Job, amount_text, did_you_mean, units_of
from executor_adapter.supervision.tools.rate_limiter import needs_no_slot

Shape = tuple[tuple[str, int], ...]
"""Names and units, sorted: jobs that need the same wait in one line."""

Turn = tuple[int, float, int, Job]
"""A job that waits, and what it is sorted by: priority (highest first), when it was queued, and a number."""


class Capacity(NamedTuple):
    """What there is in all: amounts by name, with memory in bytes, and the ids of the GPUs."""

    amounts: Mapping[str, float] = {}
    gpus: tuple[str, ...] = ()


@dataclass(slots=True)
class Allotment:
    """What one job holds."""

    units: Mapping[str, int]
    gpus: dict[str, int] = field(default_factory=dict)
    """Units of each GPU, by its id."""
    is_cpu_lent: bool = False


class ResourceLedger:
    """Gives resources to attempts, and keeps the jobs that wait for some. Supervisor thread only, but for `check`.

    No job overtakes another one that waits for the same resource, unless its priority is higher: otherwise a job that
    needs much would wait for as long as small ones keep coming. A job that waits for one resource holds up no job that
    does not need it.
    """

    def __init__(self, read_capacity: Callable[[], Capacity]) -> None:
        self.waiting = 0
        """How many jobs wait, those that have ended meanwhile included."""
        self._read_capacity = read_capacity
        self._capacity: Capacity | None = None
        self._free: dict[str, int] = {}
        self._free_gpus: dict[str, int] = {}
        self._held: dict[Job, Allotment] = {}
        self._lines: dict[Shape, list[Turn]] = {}
        """The jobs that wait, by what they need; each is a heap."""
        self._wanted: dict[Shape, set[str]] = {}
        """What the first job of each line was once short of. It is kept for it, so that its turn comes."""
        self._numbers = itertools.count()

    # --- from any thread ---

    def check(self, job: Job) -> dict[str, int] | None:
        """Return what each attempt of the job takes, in UNITS; None where it takes nothing.

        Raises:
            InvalidJobError: there is never so much.
        """
        if job.resources is None:
            return None
        capacity = self._known_capacity()
        for name, amount in job.resources.items():
            has = capacity.amounts.get(name, 0)
            if units_of(amount) > units_of(has):
                raise InvalidJobError(_refusal(name, amount, has, capacity))
        return {name: units_of(amount) for name, amount in job.resources.items()}

    def _known_capacity(self) -> Capacity:
        if self._capacity is None:  # Two threads may both read it, and read the same.
            capacity = self._read_capacity()
            self._free = {name: units_of(amount) for name, amount in capacity.amounts.items()}
            self._free_gpus = dict.fromkeys(capacity.gpus, UNITS)
            self._capacity = capacity
        return self._capacity

    # --- on the supervisor's thread ---

    def start(self, job: Job) -> bool:
        """Return whether the job may start; it then holds its resources until `end`. Otherwise it waits."""
        if job in self._held:
            return True
        assert job.live.resources is not None
        shape: Shape = tuple(sorted(job.live.resources.items()))
        turn: Turn = (-job.priority, job.live.queued_at, next(self._numbers), job)
        if self._fits(job.live.resources) and not self._is_kept(shape, turn):
            self._give(job)
            return True
        heapq.heappush(self._lines.setdefault(shape, []), turn)
        self.waiting += 1
        return False

    def take_next(self, before: Job | None) -> Job | None:
        """Take the first waiting job that fits now, and give it what it needs; None where none fits.

        Args:
            before: a job that starts next otherwise: one with a lower priority than that waits on.
        """
        kept: set[str] = set()
        for shape, line in sorted(self._first_of_lines(), key=lambda item: item[1][0]):
            job = line[0][-1]
            wanted = self._wanted.setdefault(shape, set())
            needs = job.live.resources or {}
            if before is not None and job.priority < before.priority:
                return None
            if kept.isdisjoint(needs) and self._fits(needs):
                self._leave_line(shape)
                self._give(job)
                return job
            wanted |= self._short_of(needs)
            kept |= wanted
        return None

    def end(self, job: Job) -> None:
        """Take back what the job holds, if anything."""
        allotment = self._held.pop(job, None)
        if allotment is not None:
            for name, units in allotment.units.items():
                if name != CPU or not allotment.is_cpu_lent:
                    self._free[name] += units
            for gpu, units in allotment.gpus.items():
                self._free_gpus[gpu] += units

    def lend(self, job: Job) -> None:
        """Free the processors of a job that waits for another one, which might never start otherwise."""
        allotment = self._held.get(job)
        if allotment is not None and not allotment.is_cpu_lent:
            allotment.is_cpu_lent = True
            self._free[CPU] += allotment.units.get(CPU, 0)

    def take_back(self, job: Job) -> None:
        """Take back what was lent. For a moment more processors may be in use than there are."""
        allotment = self._held.get(job)
        if allotment is not None and allotment.is_cpu_lent:
            allotment.is_cpu_lent = False
            self._free[CPU] -= allotment.units.get(CPU, 0)

    def gpus_of(self, job: Job) -> tuple[str, ...]:
        """Return the ids of the GPUs that the job holds."""
        allotment = self._held.get(job)
        return () if allotment is None else tuple(allotment.gpus)

    # --- inside ---

    def _first_of_lines(self) -> list[tuple[Shape, list[Turn]]]:
        """Return the lines that are not empty, without the jobs at their heads that need no slot any more."""
        for shape, line in list(self._lines.items()):
            while line and needs_no_slot(line[0][-1]):
                self._leave_line(shape)
        return list(self._lines.items())

    def _leave_line(self, shape: Shape) -> None:
        line = self._lines[shape]
        heapq.heappop(line)
        self.waiting -= 1
        self._wanted.pop(shape, None)
        if not line:
            del self._lines[shape]

    def _is_kept(self, shape: Shape, turn: Turn) -> bool:
        """Return whether a job that comes before this one waits for any resource of this shape."""
        names = {name for name, _ in shape}
        for other, line in self._first_of_lines():
            if line[0] < turn and (other == shape or not names.isdisjoint(self._wants(other, line[0][-1]))):
                return True
        return False

    def _wants(self, shape: Shape, job: Job) -> set[str]:
        """Return what the first job of a line is short of, or was."""
        wanted = self._wanted.setdefault(shape, set())
        wanted |= self._short_of(job.live.resources or {})
        return wanted

    def _fits(self, needs: Mapping[str, int]) -> bool:
        return not self._short_of(needs)

    def _short_of(self, needs: Mapping[str, int]) -> set[str]:
        short = {name for name, units in needs.items() if self._free[name] < units}
        if GPU in needs and GPU not in short and not self._choose_gpus(needs[GPU]):
            short.add(GPU)
        return short

    def _choose_gpus(self, units: int) -> dict[str, int]:
        """Return GPUs for so many units: whole ones, or the one whose free rest is the smallest; none if none fit."""
        if units < UNITS:
            fitting = {gpu: free for gpu, free in self._free_gpus.items() if free >= units}
            return {min(fitting, key=fitting.__getitem__): units} if fitting else {}
        free = [gpu for gpu, left in self._free_gpus.items() if left == UNITS]
        count = units // UNITS
        return dict.fromkeys(free[:count], UNITS) if len(free) >= count else {}

    def _give(self, job: Job) -> None:
        needs = job.live.resources or {}
        gpus = self._choose_gpus(needs[GPU]) if GPU in needs else {}
        for name, units in needs.items():
            self._free[name] -= units
        for gpu, units in gpus.items():
            self._free_gpus[gpu] -= units
        self._held[job] = Allotment(needs, gpus)


def _refusal(name: str, amount: float, has: float, capacity: Capacity) -> str:
    needed = amount_text(name, units_of(amount))
    if not has and name != GPU:
        return f"resources: this executor has no {name}: {did_you_mean(name, capacity.amounts)} or set its capacity"
    return (
        f"resources: an attempt needs {needed}, and this executor has {amount_text(name, units_of(has))}: "
        f"ask for less, or set capacity={{{name!r}: ...}}"
    )
