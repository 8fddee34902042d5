"""How much memory one place allows, and how much of it is left."""

from __future__ import annotations

from typing import NamedTuple

from executor_adapter.job import size_text

HIGH_MARGIN = 0.10
"""Share of the limit: with less left, no further attempt starts."""
CRITICAL_MARGIN = 0.05
"""Share of the limit: with less left, the largest attempt is ended."""
MAX_HIGH_MARGIN = 2 << 30
"""Bytes. A share of a large machine would be memory that many jobs could use."""
MAX_CRITICAL_MARGIN = 1 << 30
FASTEST_GROWTH = 2 << 30
"""Bytes that a process may take in one second: about the speed at which memory is filled."""


class MemoryLevel(NamedTuple):
    """Describes the memory of one place, in bytes; `left` is what can be used without taking it from anybody."""

    place: str
    limit: int
    left: int

    @property
    def high_margin(self) -> int:
        """The bytes that must be left for a further attempt to start."""
        return min(int(self.limit * HIGH_MARGIN), MAX_HIGH_MARGIN)

    @property
    def critical_margin(self) -> int:
        """The bytes that must be left for the largest attempt to go on."""
        return min(int(self.limit * CRITICAL_MARGIN), MAX_CRITICAL_MARGIN)

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
