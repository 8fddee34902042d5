"""Limits how many events may be in flight to a server: sent, and not known to be recorded.

The server answers before it has recorded an event. It keeps unrecorded events in queues that drop what exceeds their
limit (10,000 messages, shared by all clients), and works through them in order. So the events in flight are bounded by
a congestion window: large enough that the server is never idle, and small enough that a state is recorded a few
seconds after it was sent, however slow the server is. A final state sent in a hurry must not wait behind minutes of
others.

In a hurry there is no time to measure the server's speed: as much as its queues hold is sent at once, and the server
may record it after the process has ended.
"""

from __future__ import annotations

INITIAL_WINDOW = 300
MIN_WINDOW = 100
MAX_WINDOW = 3_000
"""Events in flight."""

MAX_BATCH_SIZE = 500
"""Events in one request."""

TRANSACTIONS_IN_FLIGHT = 3
"""Smallest window, in transactions of a recorder that writes many events in each.

One is being written, one is queued, and one is written but not yet known to be.
"""

VERY_FAST_SECONDS = 1.5
FAST_SECONDS = 2.0
TARGET_SECONDS = 3.0
SLOW_SECONDS = 4.0
"""Time from sending to recorded. The window grows below the first two limits, and shrinks above the last."""

GROWTH_FACTOR = 3
VERY_FAST_GROWTH_FACTOR = 10
"""Steps of growth. They are large, because a server that writes once a second takes as long for many as for few."""

MIN_CHECK_INTERVAL = 0.25
MAX_CHECK_INTERVAL = 1.0
"""Seconds between two checks of what is recorded. A slow server is checked less often: each check is work for it."""

CHECKS_PER_DELIVERY = 3
"""Checks in the time from sending to recorded, so that the server still has events to record between two checks."""

MAX_CHECK_INTERVAL_LARGE_TRANSACTIONS = 0.5
"""The same for a server that writes many events in a transaction, and may become idle between two checks."""

MIN_FINAL_CHECK_INTERVAL = 0.1
"""Seconds between the last checks, while a caller waits for the result."""

FEW_EVENTS = 10
MIN_CHECK_INTERVAL_OF_FEW = 0.03
"""Seconds between the last checks where so few events are in flight: a direct call of a job task waits for them."""

CHECKS_PER_STALL = 8
"""Checks, at the end, in the time for which a server has shown no progress."""


class SendWindow:
    """The congestion window: grows and shrinks with the time that the server takes to record events."""

    def __init__(self) -> None:
        self.is_hurried = False
        self._size = INITIAL_WINDOW
        self._min_size = MIN_WINDOW
        self._check_interval = MIN_CHECK_INTERVAL
        self._max_check_interval = MAX_CHECK_INTERVAL
        self._events_per_second = 0.0
        self._arrived_at = float("-inf")
        self._changed_at = float("-inf")

    def set_transaction_size(self, events: int) -> None:
        """Adapt to the number of events that the server writes in one transaction.

        With many it is fast, so the window is large from the start, unless the server has shown to be slow.
        """
        if events > INITIAL_WINDOW / TRANSACTIONS_IN_FLIGHT:
            self._min_size = min(MAX_WINDOW, TRANSACTIONS_IN_FLIGHT * events)
            self._check_interval = self._max_check_interval = MAX_CHECK_INTERVAL_LARGE_TRANSACTIONS
        if self._changed_at == float("-inf"):
            self._size = max(INITIAL_WINDOW, self._min_size)

    @property
    def size(self) -> int:
        """The most events that may be in flight."""
        return MAX_WINDOW if self.is_hurried else self._size

    @property
    def batch_size(self) -> int:
        """Events for one request: a third of the window, so that the server has the next while one is confirmed."""
        return min(MAX_BATCH_SIZE, self.size // 3)

    def check_interval(self, now: float, *, last: int | None = None, since: float = float("-inf")) -> float:
        """Return the seconds between two checks of what is recorded.

        `last` is the number of events in flight if no further ones wait to be sent: the fewer there are, the sooner
        the server has recorded them all. `since` is the time at which the first of them was sent.
        """
        if self.is_hurried:
            return MIN_CHECK_INTERVAL
        stalled = now - max(self._arrived_at, since)
        if last is not None and last <= FEW_EVENTS:
            return min(self._check_interval, max(MIN_CHECK_INTERVAL_OF_FEW, stalled / CHECKS_PER_STALL))
        if last is None or not self._events_per_second:
            return self._check_interval
        expected = last / self._events_per_second
        shorter = max(MIN_FINAL_CHECK_INTERVAL, expected / CHECKS_PER_DELIVERY, stalled / CHECKS_PER_STALL)
        return min(self._check_interval, shorter)

    def on_arrived(self, events: int, sent_at: float, now: float) -> None:
        """Measure the server's speed: a check found `events` more recorded, the first of them sent at `sent_at`."""
        self._events_per_second = events / max(now - max(sent_at, self._arrived_at), MIN_FINAL_CHECK_INTERVAL)
        self._arrived_at = now

    def on_batch_arrived(self, sent_at: float, now: float, *, filled_window: bool) -> None:
        """Adapt the window: a batch sent at `sent_at` is recorded.

        A batch that was sent before the last change of the window shows nothing about its new size.
        """
        seconds = now - sent_at
        interval = max(MIN_CHECK_INTERVAL, seconds / CHECKS_PER_DELIVERY)
        self._check_interval = min(self._max_check_interval, interval)
        if sent_at < self._changed_at:
            return
        if seconds > SLOW_SECONDS:
            self._resize(max(self._min_size, int(self._size * TARGET_SECONDS / seconds)), now)
        elif seconds < FAST_SECONDS and filled_window:
            factor = VERY_FAST_GROWTH_FACTOR if seconds < VERY_FAST_SECONDS else GROWTH_FACTOR
            self._resize(min(MAX_WINDOW, factor * self._size), now)

    def _resize(self, size: int, now: float) -> None:
        self._size, self._changed_at = size, now
