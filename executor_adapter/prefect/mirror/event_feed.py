"""Limits how far the server's list of events may lag behind: it has a queue of its own that drops what is too much.

The server's recorder of task runs and its list of events take the same events, each from a queue of 10,000. A recorder
that writes many events at once is much faster than the list, so what it has recorded shows nothing about the list.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MAX_UNLISTED_EVENTS = 8_000
"""Events that were sent and may not be listed yet: less than the queue holds, because others use it too."""

MIN_LISTED_EVENTS = 1_000
"""Events that must have been listed before more are sent, so that one request asks for as many."""

CHECK_INTERVAL = 0.5
"""Seconds between two requests, while more events are unlisted than may be."""

LISTING_STALL_TIMEOUT = 15.0
"""Seconds without progress after which the server is taken to keep no list."""


class EventFeed:
    """Counts the sent events that the server's list may not contain yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._batches: deque[tuple[StateEvent, int]] = deque()
        """The last event of each unlisted request, and the number of its events."""
        self._unlisted = 0
        self._checked_at = self._progress_at = float("-inf")

    def on_sent(self, events: list[StateEvent]) -> None:
        """Count the events of a request. Requests must be counted in the order in which they were sent."""
        if not self._batches:
            self._progress_at = self._clock()
        self._batches.append((events[-1], len(events)))
        self._unlisted += len(events)

    def has_room(self, is_listed: Callable[[StateEvent], bool]) -> bool:
        """Whether more events may be sent; `is_listed` asks the server.

        Raises:
            httpx.HTTPError: the server cannot be reached.
        """
        now = self._clock()
        if self._unlisted > MAX_UNLISTED_EVENTS and now >= self._checked_at + CHECK_INTERVAL:
            self._checked_at = now
            self._check(is_listed, now)
        return self._unlisted <= MAX_UNLISTED_EVENTS

    def _check(self, is_listed: Callable[[StateEvent], bool], now: float) -> None:
        batches = events = 0
        while events < self._unlisted - (MAX_UNLISTED_EVENTS - MIN_LISTED_EVENTS):
            events += self._batches[batches][1]
            batches += 1
        if is_listed(self._batches[batches - 1][0]):
            self._progress_at = now
            self._drop(batches)
        elif now - self._progress_at > LISTING_STALL_TIMEOUT:
            logger.debug("the server's list of events makes no progress; no longer waiting for it")
            self._drop(len(self._batches))

    def _drop(self, batches: int) -> None:
        for _ in range(batches):
            self._unlisted -= self._batches.popleft()[1]
