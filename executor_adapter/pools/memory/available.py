"""The memory that is left for jobs: of the control groups, of the machine, and of what the settings allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from executor_adapter.pools.memory.control_groups import ROOT, groups_of_this_process
from executor_adapter.pools.memory.level import MemoryLevel
from executor_adapter.pools.memory.oom_kills import oom_kills


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
        levels = [level for group in self._groups if (level := group.level(swap_free)) is not None]
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
