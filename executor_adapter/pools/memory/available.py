"""The memory that is left for jobs: of the control groups, of the machine, and of what the settings allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from executor_adapter.job import size_text
from executor_adapter.pools.memory.control_groups import ROOT, groups_of_this_process
from executor_adapter.pools.memory.oom_kills import oom_kills

CRITICAL_SHARE = 0.05
"""Share of the limit: with less left, the largest attempt is ended. One that holds less than it is not worth that."""
MAX_CRITICAL_MARGIN = 1 << 30
"""Bytes. A share of a large machine would be memory that many jobs could use."""
ROOM_TO_ACT = 64 << 20
"""Bytes that are left at least when the largest attempt is ended, since it grows until it is dead.

Measured in groups of 700 MiB on two cores with six to eight processes that wanted them: a hog took up to 2 GiB/s, a
check came up to 15 ms after it was due, 5 ms after the last, and chose and killed the hog within 10 ms. In these 30 ms
it takes 60 MiB. With a twentieth, 35 MiB, the kernel killed as well in two of six runs.
"""
MAX_SHARE_TO_ACT = 0.125
"""Share of the limit that this room may be: the jobs of a small group need the rest."""
FASTEST_GROWTH = 8 << 30
"""Bytes that all processes together may take in one second; one took up to 2.7 GiB, by which 2 GiB came too late."""


class MemoryLevel(NamedTuple):
    """Describes the memory of one place, in bytes; `left` is what can be used without taking it from anybody."""

    place: str
    limit: int
    left: int

    @property
    def high_margin(self) -> int:
        """The bytes that must be left for a further attempt to start."""
        return 2 * self.critical_margin

    @property
    def critical_margin(self) -> int:
        """The bytes that must be left for the largest attempt to go on."""
        return max(self.least_gain, min(ROOM_TO_ACT, int(self.limit * MAX_SHARE_TO_ACT)))

    @property
    def least_gain(self) -> int:
        """The bytes that an attempt must hold for its end to help."""
        return min(int(self.limit * CRITICAL_SHARE), MAX_CRITICAL_MARGIN)

    @property
    def is_high(self) -> bool:
        """Whether no further attempt should start."""
        return self.left < self.high_margin

    @property
    def is_critical(self) -> bool:
        """Whether an attempt should be ended, before the kernel ends something."""
        return self.left < self.critical_margin

    @property
    def above_critical(self) -> int:
        """The bytes that can be used before it is critical; negative if it is."""
        return self.left - self.critical_margin

    def __str__(self) -> str:
        return f"{self.place} has {size_text(self.left)} of {size_text(self.limit)} left"


class AvailableMemory:
    """Reads how much memory is left where it is scarcest.

    `size`: the bytes that this process and all below it may hold; "auto" for no limit of their own. The limits of
    control groups and the memory of the machine count in any case.
    """

    def __init__(self, size: int | Literal["auto"] = "auto", *, root: Path = ROOT) -> None:
        self._size = size
        self._root = root
        self._groups = groups_of_this_process(root)

    def read(self) -> MemoryLevel | None:
        """Return the level of the place with the smallest share left; None if nothing is known (no Linux)."""
        oom_kills.observe()
        machine, swap_free = self._machine()
        levels = [
            MemoryLevel(f"the control group {group.name}", *room)
            for group in self._groups
            if (room := group.room(swap_free)) is not None
        ]
        if machine is not None:
            levels.append(machine)
        if self._size != "auto":
            levels.append(self._own_level(self._size))
        return min(levels, key=lambda level: level.left / max(1, level.high_margin), default=None)

    def _machine(self) -> tuple[MemoryLevel | None, int]:
        """Return the level of the machine, and its free swap."""
        wanted = {b"MemTotal:": 0, b"MemAvailable:": 0, b"SwapFree:": 0}
        try:
            with open(self._root / "proc/meminfo", "rb") as file:
                for line in file:
                    key, value = line.split()[:2]
                    if key in wanted:
                        wanted[key] = int(value) << 10
        except OSError:
            return None, 0
        total, available, swap_free = wanted.values()
        return MemoryLevel("the machine", total, available + swap_free) if total else None, swap_free

    @staticmethod
    def _own_level(size: int) -> MemoryLevel:
        # Imported here, because it needs what only Linux has.
        from executor_adapter.pools.memory.tree_memory import measure

        mark = MemoryLevel("executor.memory", size, size)
        return mark._replace(left=size - measure(os.getpid(), size - mark.high_margin).used)
