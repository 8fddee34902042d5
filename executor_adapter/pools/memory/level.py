"""How much memory one place allows, and how much of it is left."""

from __future__ import annotations

from typing import NamedTuple

from executor_adapter.job import size_text

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
