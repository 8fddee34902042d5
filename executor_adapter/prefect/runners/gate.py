"""Limits how many engine threads start at once: too many contend for the GIL and delay those about to finish.

An engine starts when one of the few before it has its slot. An engine that may have to wait for something other than a
slot starts immediately, because an engine that waits only for a slot must not queue behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

MAX_STARTING = 4
"""Engines that may be starting at once: enough that a free slot never waits for an engine."""


class Gate:
    """Lets engines start in the order of their arrival, a few at a time. Thread-safe."""

    def __init__(self, max_starting: int = MAX_STARTING) -> None:
        self._places = max_starting
        self._waiting: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()

    def enter(self, start: Callable[[], object]) -> None:
        """Call `start()` as soon as there is a place, now or from `leave`; each caller must `leave` once."""
        with self._lock:
            if not self._places:
                self._waiting.append(start)
                return
            self._places -= 1
        start()

    def leave(self) -> None:
        """Give the place to the next engine."""
        with self._lock:
            if not self._waiting:
                self._places += 1
                return
            start = self._waiting.popleft()
        start()
