"""How many events may be on their way to a server: sent, and not known to be recorded.

The server answers before it has recorded an event, holds what it has not recorded in queues that drop what is too much
(10,000 messages, shared by everybody who uses the server), and works through them in order. So what is on its way is
bounded, and so small that the server never idles and a state is recorded a few seconds after it was sent, however slow
the server is: a final state that is sent in a hurry must not wait behind minutes of others.

In a hurry there is no time to see how fast the server is: what its queues hold is sent at once, and what it has not
recorded by the end is recorded after it.
"""

from __future__ import annotations

from executor_adapter.prefect.mirror.state_events import StateEvent

FIRST_WINDOW = 300
SMALLEST_WINDOW = 100
LARGEST_WINDOW = 3_000
BATCH = 500
"""Events in one request, at most."""

TRANSACTIONS = 3
"""Of the server's recorder, that the smallest window of one that writes many events at once is made for: one that it
writes, one that lies ready, and one of which it is not known yet that it is written."""

VERY_QUICK = 1.5
QUICK = 2.0
WANTED = 3.0
SLOW = 4.0
"""Seconds from sending to recorded: below the first two there is room for more, beyond the last there are too many."""

GROWTH = 3
FAST_GROWTH = 10
"""By so much at once: a server that writes once a second takes as long for many as for few."""

MOST_OFTEN = 0.25
LEAST_OFTEN = 1.0
LOOKS = 3
"""Seconds between two looks at what is recorded, and looks in the time that it takes: so what is on its way outlasts
the time between them, and a slow server, to which each look is work, is looked at less often."""
LEAST_OFTEN_OF_MANY = 0.5
"""The same, of a server that writes many events at once: while it is not looked at it may run dry."""
AT_THE_END = 0.1
"""Seconds between the last looks: somebody waits for what they show."""
STALLED_LOOKS = 8
"""Looks in the time that a server has shown no progress for, at the end."""


class Batch:
    """Events of one request."""

    __slots__ = ("arrived_at", "events", "sent_at", "was_full")

    def __init__(self, events: list[StateEvent], sent_at: float, was_full: bool) -> None:
        self.events = events
        self.sent_at = sent_at
        self.was_full = was_full
        self.arrived_at = 0.0

    @property
    def finals(self) -> list[StateEvent]:
        return [event for event in self.events if event.is_final]

    @property
    def is_own(self) -> bool:
        return self.events[0].origin is None


class SendWindow:
    """Grows and shrinks the window by how long the server takes."""

    def __init__(self) -> None:
        self.hurries = False
        self._window = FIRST_WINDOW
        self._smallest = SMALLEST_WINDOW
        self._look_seconds = MOST_OFTEN
        self._least_often = LEAST_OFTEN
        self._a_second = 0.0
        self._arrived_at = float("-inf")
        self._changed_at = float("-inf")

    def expect(self, at_once: int) -> None:
        """The server writes so many events in one transaction: with many it is quick, and need not show that first."""
        if at_once > FIRST_WINDOW / TRANSACTIONS:
            self._smallest = min(LARGEST_WINDOW, TRANSACTIONS * at_once)
            self._look_seconds = self._least_often = LEAST_OFTEN_OF_MANY
        if self._changed_at == float("-inf"):
            self._window = max(FIRST_WINDOW, self._smallest)

    @property
    def window(self) -> int:
        """Events on their way, at most."""
        return LARGEST_WINDOW if self.hurries else self._window

    def look_seconds(self, now: float, *, last: int | None = None) -> float:
        """Between two looks at what is recorded. `last`: how many events are on their way, if nothing waits behind
        them: the fewer that are, the sooner the server has them all."""
        if self.hurries:
            return MOST_OFTEN
        if last is None or not self._a_second:
            return self._look_seconds
        share_of_it, stalled = last / self._a_second / LOOKS, now - self._arrived_at
        return min(self._look_seconds, max(AT_THE_END, share_of_it, stalled / STALLED_LOOKS))

    @property
    def batch(self) -> int:
        """Events to send at once: a third of the window, so that the server has the next while one is confirmed."""
        return min(BATCH, self.window // 3)

    def arrived(self, events: int, sent_at: float, now: float) -> None:
        """A look shows so many more of them recorded, of which the first was sent at `sent_at`."""
        self._a_second = events / max(now - max(sent_at, self._arrived_at), AT_THE_END)
        self._arrived_at = now

    def confirmed(self, sent_at: float, now: float, *, was_full: bool) -> None:
        """What was sent at `sent_at` is recorded; `was_full`: there was more to send than the window let.

        What was sent before the last change says nothing of the window since.
        """
        seconds = now - sent_at
        self._look_seconds = min(self._least_often, max(MOST_OFTEN, seconds / LOOKS))
        if sent_at < self._changed_at:
            return
        if seconds > SLOW:
            self._change(max(self._smallest, int(self._window * WANTED / seconds)), now)
        elif seconds < QUICK and was_full:
            growth = FAST_GROWTH if seconds < VERY_QUICK else GROWTH
            self._change(min(LARGEST_WINDOW, growth * self._window), now)

    def _change(self, window: int, now: float) -> None:
        self._window, self._changed_at = window, now
