"""The events that are to be sent next, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from executor_adapter.prefect.mirror.state_events import StateEvent


class Outbox:
    """Gives out the events to be sent: those sent in vain first, then new ones, and spooled ones apart.

    `source(limit)` returns new events, at most `limit`.
    """

    def __init__(self, source: Callable[[int], list[StateEvent]]) -> None:
        self.resend: deque[StateEvent] = deque()
        """Events of this process that the server has not taken, or has lost."""
        self.spooled: deque[StateEvent] = deque()
        """Events that an earlier process wrote to the spool."""
        self._source = source

    def take(self, limit: int) -> list[StateEvent]:
        """Remove and return events of this process, at most `limit`."""
        events = _take_first(self.resend, limit)
        if len(events) < limit:
            events += self._source(limit - len(events))
        return events

    def take_spooled(self, limit: int) -> list[StateEvent]:
        """Remove and return spooled events, at most `limit`."""
        return _take_first(self.spooled, limit)

    def put_back(self, events: list[StateEvent]) -> None:
        """Return events to the front of their queue."""
        for event in reversed(events):
            self._queue_of(event).appendleft(event)

    def append(self, event: StateEvent) -> None:
        """Return an event to the end of its queue."""
        self._queue_of(event).append(event)

    def remove(self, event: StateEvent) -> None:
        """Remove an event that is in its queue."""
        self._queue_of(event).remove(event)

    def _queue_of(self, event: StateEvent) -> deque[StateEvent]:
        return self.resend if event.spool_file is None else self.spooled


def _take_first(queue: deque[StateEvent], limit: int) -> list[StateEvent]:
    return [queue.popleft() for _ in range(min(limit, len(queue)))]
