"""Lets engines set out one after another, so that a thousand submitted tasks are not a thousand threads.

Threads that all want the interpreter take it from one another, and from those that are nearly done. So an engine sets
out when one of the few before it has its slot. Those that may wait for something else than a slot go at once, in a
thread each: nothing that waits for a slot alone is to stand behind them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

WIDTH = 4
"""Engines on their way to a slot at once: enough for a slot never to wait for an engine."""


class Gate:
    """First come, first served. Safe to use from any thread."""

    def __init__(self, width: int = WIDTH) -> None:
        self._free = width
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()

    def enter(self, set_out: Callable[[], object]) -> None:
        """Call `set_out()` as soon as there is a place, now or from `leave`; each is to `leave` once."""
        with self._lock:
            if not self._free:
                self._waiting.append(set_out)
                return
            self._free -= 1
        set_out()

    def leave(self) -> None:
        """Give the place to the next."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            set_out = self._waiting.popleft()
        set_out()
