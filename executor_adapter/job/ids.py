"""Ids of jobs: UUIDs of version 7."""

from __future__ import annotations

import os
import time


class Uuid7Generator:
    """Makes UUIDs of version 7 (RFC 9562). Draws random bits for many at once: a system call each would be slower."""

    def __init__(self) -> None:
        self._discard()
        os.register_at_fork(after_in_child=self._discard)  # Otherwise parent and child would make the same ids.

    def _discard(self) -> None:
        self._random: list[str] = []
        self._time: tuple[int, str] = (0, "")

    def __call__(self) -> str:
        """Return a new UUID. Its first 48 bits are the time in milliseconds, so ids sort by age."""
        now = time.time_ns() // 1_000_000
        milliseconds, digits = self._time
        if now != milliseconds:
            digits = f"{now >> 16:08x}-{now & 0xFFFF:04x}-7"
            self._time = now, digits
        try:
            return digits + self._random.pop()
        except IndexError:
            self._random.extend(self._draw(255))
            return digits + self._draw(1)[0]

    @staticmethod
    def _draw(count: int) -> list[str]:
        """Return what follows the version in `count` ids; the first two bits of the second group are the variant."""
        digits = os.urandom(10 * count).hex()
        drawn = (digits[at : at + 20] for at in range(0, 20 * count, 20))
        return [f"{d[:3]}-{'89ab'[int(d[3], 16) & 3]}{d[4:7]}-{d[8:]}" for d in drawn]


uuid7 = Uuid7Generator()
