"""The GPUs of a machine by their ids, and how they are shared out among attempts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from executor_adapter.job import UNITS

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
"""The variable by which a process knows the GPUs that are its own."""


def visible_gpus() -> tuple[str, ...]:
    """Return the ids of the GPUs that this process sees: those of GPU_VARIABLE or, without it, of the machine."""
    visible = os.environ.get(GPU_VARIABLE)
    if visible is None:
        devices = (path.name for path in Path("/dev").glob("nvidia*"))
        return tuple(sorted(name.removeprefix("nvidia") for name in devices if re.fullmatch(r"nvidia\d+", name)))
    ids = [each.strip() for each in visible.split(",")]
    # As CUDA does: what follows an id that is none is not visible.
    end = next((place for place, each in enumerate(ids) if each in ("", "-1")), len(ids))
    return tuple(ids[:end])


def gpu_ids(count: int) -> tuple[str, ...]:
    """Return the ids of so many GPUs: the visible ones first, then numbers that are not among them."""
    seen = visible_gpus()
    more = (str(number) for number in range(count) if str(number) not in seen)
    return (*seen, *more)[:count] if count > len(seen) else seen[:count]


def gpu_environment(ids: Iterable[str]) -> dict[str, str]:
    """Return the variables that show these GPUs to a process."""
    return {GPU_VARIABLE: ",".join(ids)}


class GpuShares:
    """Counts what is free of each GPU, in UNITS."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._free = dict.fromkeys(ids, UNITS)

    def choose(self, units: int) -> dict[str, int]:
        """Return GPUs for so many units: whole ones, or the one whose free rest is the smallest; none if none fit."""
        if units < UNITS:
            fitting = {gpu: free for gpu, free in self._free.items() if free >= units}
            return {min(fitting, key=fitting.__getitem__): units} if fitting else {}
        free = [gpu for gpu, left in self._free.items() if left == UNITS]
        count = units // UNITS
        return dict.fromkeys(free[:count], UNITS) if len(free) >= count else {}

    def take(self, shares: Mapping[str, int]) -> None:
        """Take what `choose` has returned."""
        for gpu, units in shares.items():
            self._free[gpu] -= units

    def give_back(self, shares: Mapping[str, int]) -> None:
        """Give back what was taken."""
        for gpu, units in shares.items():
            self._free[gpu] += units
