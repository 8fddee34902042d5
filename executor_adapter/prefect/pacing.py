"""How many events may be on their way to a server: sent, and not known to be recorded.

The server answers before it has recorded an event, holds what it has not recorded in queues that drop what is too much
(10,000 messages, shared by everybody who uses the server), and works through them in order. So what is on its way is
bounded, and so small that the server never idles and a state is recorded a few seconds after it was sent, however slow
the server is: a final state that is sent in a hurry must not wait behind minutes of others.

In a hurry there is no time to see how fast the server is: what its queues hold is sent at once, and what it has not
recorded by the end is recorded after it.
"""

from __future__ import annotations

FIRST_WINDOW = 300
SMALLEST_WINDOW = 100
LARGEST_WINDOW = 3_000
BATCH = 300
"""Events in one request, at most."""

QUICK = 2.0
WANTED = 3.0
SLOW = 4.0
"""Seconds from sending to recorded: below the one there is room for more, beyond the other there are too many."""

GROWTH = 3
"""By so much at once: a server that writes once a second takes as long for many as for few."""

MOST_OFTEN = 0.25
LEAST_OFTEN = 1.0
LOOKS = 4
"""Seconds between two looks at what is recorded, and looks in the time that it takes: so what is on its way outlasts
the time between them, and a slow server, to which each look is work, is looked at less often."""


class Pace:
    """Grows and shrinks the window by how long the server takes."""

    def __init__(self) -> None:
        self.hurries = False
        self._window = FIRST_WINDOW
        self._look_seconds = MOST_OFTEN
        self._changed_at = float("-inf")

    @property
    def window(self) -> int:
        """Events on their way, at most."""
        return LARGEST_WINDOW if self.hurries else self._window

    @property
    def look_seconds(self) -> float:
        """Between two looks at what is recorded."""
        return MOST_OFTEN if self.hurries else self._look_seconds

    @property
    def batch(self) -> int:
        """Events to send at once: a third of the window, so that the server has the next while one is confirmed."""
        return min(BATCH, self.window // 3)

    def confirmed(self, sent_at: float, now: float, *, was_full: bool) -> None:
        """What was sent at `sent_at` is recorded; `was_full`: there was more to send than the window let.

        What was sent before the last change says nothing of the window since.
        """
        seconds = now - sent_at
        self._look_seconds = min(LEAST_OFTEN, max(MOST_OFTEN, seconds / LOOKS))
        if sent_at < self._changed_at:
            return
        if seconds > SLOW:
            self._change(max(SMALLEST_WINDOW, int(self._window * WANTED / seconds)), now)
        elif seconds < QUICK and was_full:
            self._change(min(LARGEST_WINDOW, GROWTH * self._window), now)

    def _change(self, window: int, now: float) -> None:
        self._window, self._changed_at = window, now
