"""Ids of jobs: UUIDs of version 7."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

_NUMBERS = 1 << 24
"""Ids that share their random digits, and end with consecutive numbers of six digits instead."""


class Uuid7Generator:
    """Makes UUIDs of version 7 (RFC 9562), each of which sorts behind those before it.

    Of the digits that may be random, the last six are a counter: random ones would be drawn, and formatted, anew for
    each of thousands of jobs a second.
    """

    def __init__(self) -> None:
        self._draw()
        os.register_at_fork(after_in_child=self._draw)  # Otherwise parent and child would make the same ids.

    def _draw(self) -> None:
        """Begin a series: draw its random digits, of which the first two bits of the second group are the variant."""
        drawn = os.urandom(7).hex()
        digits = f"{drawn[:3]}-{'89ab'[int(drawn[3], 16) & 3]}{drawn[4:7]}-{drawn[7:13]}"
        # In one object, so that a thread never sees the digits of one series and the counter of another.
        self._series: tuple[str, Iterator[int]] = digits, itertools.count()

    def __call__(self) -> str:
        """Return a new UUID. Its first 48 bits are the time in milliseconds, so ids sort by age."""
        digits, numbers = self._series
        number = next(numbers)
        if number >= _NUMBERS:
            self._draw()
            return self()
        now = time.time_ns() // 1_000_000
        return f"{now >> 16:08x}-{now & 0xFFFF:04x}-7{digits}{number:06x}"


uuid7 = Uuid7Generator()
