"""What a mirror has still to tell: changes of task runs, in order, until the sender takes them.

Whoever waits longest is told of first; but where many wait, a change that is a moment old, and may be passed within the
next, waits for what cannot be. So of many short jobs a server gets all states of each together, or its end alone, which
is much less work for it than three times one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

from executor_adapter.prefect.mirror.history import Step, TaskRunHistory
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent

History = Literal["auto", "full", "final"]

AnyHistory = TaskRunHistory[Any]

MOST_UNSENT = 500
"""Unsent changes beyond which "auto" leaves out what jobs have passed through."""
MOST_UNSENT_IN_A_HURRY = 50
"""The same, where the process is about to end."""
A_MOMENT = 0.5
"""Seconds for which a change that is not the last is held back."""
FEW = 50
"""Unsent changes up to which none is held back: half a second's work for the slowest of servers."""


class UnsentChanges:
    """`append` may be called from any thread; all else by one at a time."""

    def __init__(self, history: History, *, clock: Callable[[], float] = time.monotonic) -> None:
        if history not in ("auto", "full", "final"):
            raise ValueError(f"history={history!r} is none: choose 'auto', 'full' or 'final'")
        self.omitted = 0
        """States that were not told, since the job had passed through them and was over."""
        self.hurries = False
        """Tell only of jobs that are over, and only how they ended but for a few changes."""
        self._history = history
        self._clock = clock
        self._inbox: deque[tuple[AnyHistory, Any]] = deque()
        self._waiting: deque[tuple[float, AnyHistory]] = deque()
        """Those with unsent changes, and since when."""
        self._over: deque[AnyHistory] = deque()
        """Those of them that are over. What is told of by this is passed by in the other when its turn comes."""
        self._unsent = 0

    def __bool__(self) -> bool:
        return bool(self._unsent or self._inbox)

    def append(self, history: TaskRunHistory[Step], step: Step) -> None:
        """Something happened to a task run."""
        self._inbox.append((history, step))

    def take_in(self) -> None:
        """Note what was appended since the last time; here and not there, since `append` must be quick."""
        now = self._clock()
        for _ in range(len(self._inbox)):
            history, step = self._inbox.popleft()
            if not history.unsent:
                self._waiting.append((now, history))
            history.add(step)
            self._unsent += 1
            if history.is_over:
                self._over.append(history)
                self._shorten(history)

    def next_events(self, most: int, flow: FlowRunFacts) -> list[StateEvent]:
        """At most so many events to be sent now, which are then no longer here."""
        self.take_in()
        events: list[StateEvent] = []
        while len(events) < most and (history := self._next()) is not None:
            if history.is_over:
                self._shorten(history)
            while history.unsent and len(events) < most:
                events.append(history.tell_next(flow))
                self._unsent -= 1
        return events

    def finals(self, flow: FlowRunFacts) -> Iterator[StateEvent]:
        """How the jobs ended whose end is not sent. Asked for once, when nothing is sent any more."""
        for history in list(self.over()):
            self._leave_out(history)
            yield history.tell_next(flow)

    def over(self) -> Iterator[AnyHistory]:
        """Of the jobs whose end is not sent."""
        self.take_in()
        # One that is rolled back once it was over is there twice.
        return iter(dict.fromkeys(history for history in self._over if history.unsent and history.is_over))

    def _next(self) -> AnyHistory | None:
        """Of which to tell next."""
        while self._waiting and not self._waiting[0][1].unsent:
            self._waiting.popleft()
        while self._over and not self._over[0].unsent:
            self._over.popleft()
        if self._waiting and not self.hurries:
            since, first = self._waiting[0]
            if first.is_over or self._unsent <= FEW or since + A_MOMENT <= self._clock():
                return first
        return self._over[0] if self._over else None

    def _shorten(self, history: AnyHistory) -> None:
        """Leave out what a job that is over has passed through, if that is called for by now."""
        behind = self._unsent > (MOST_UNSENT_IN_A_HURRY if self.hurries else MOST_UNSENT)
        if self._history == "final" or (self._history == "auto" and behind):
            self._leave_out(history)

    def _leave_out(self, history: AnyHistory) -> None:
        omitted = history.leave_out_passed()
        self.omitted += omitted
        self._unsent -= omitted
