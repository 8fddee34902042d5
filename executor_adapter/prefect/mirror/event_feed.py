"""The server's list of events, which it shows and keeps: another queue of its own that drops what is too much.

The recorder and the list take the same events, each from a queue of 10,000. A recorder that writes many at once is the
quicker of the two by far, so what it has recorded says nothing of the list: how far that is behind is bounded here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MOST_UNLISTED = 8_000
"""Events that were sent and may not be in the list yet: most of what the queue holds, and not all, as others use it."""
STEP = 1_000
"""Events that must have come into the list before more are sent: one question for as many."""
ASK_EVERY = 0.5
"""Seconds between two questions, while more are on their way."""
LISTING_STALL_TIMEOUT = 15.0
"""Seconds without progress after which the list counts as one that is not kept."""


class EventFeed:
    """How far the list has come."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: deque[tuple[StateEvent, int]] = deque()
        """The last event of each request, and how many events the request held."""
        self._unlisted = 0
        self._asked_at = self._progress_at = float("-inf")

    def sent(self, events: list[StateEvent]) -> None:
        """These were sent, after all that was before."""
        if not self._marks:
            self._progress_at = self._clock()
        self._marks.append((events[-1], len(events)))
        self._unlisted += len(events)

    def has_room(self, is_listed: Callable[[StateEvent], bool]) -> bool:
        """Whether more may be sent; `is_listed` asks the server.

        Raises:
            httpx.HTTPError: the server is away.
        """
        now = self._clock()
        if self._unlisted > MOST_UNLISTED and now >= self._asked_at + ASK_EVERY:
            self._asked_at = now
            self._look(is_listed, now)
        return self._unlisted <= MOST_UNLISTED

    def _look(self, is_listed: Callable[[StateEvent], bool], now: float) -> None:
        passed = before = 0
        while before < self._unlisted - (MOST_UNLISTED - STEP):
            before += self._marks[passed][1]
            passed += 1
        if is_listed(self._marks[passed - 1][0]):
            self._progress_at = now
            self._drop(passed)
        elif now - self._progress_at > LISTING_STALL_TIMEOUT:
            logger.debug("the server's list of events does not go on: it is waited for no more")
            self._drop(len(self._marks))

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._unlisted -= self._marks.popleft()[1]
