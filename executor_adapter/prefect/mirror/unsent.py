"""Keeps the state changes that are not sent yet, and decides which ones are sent next and which are skipped.

The task run that has waited longest comes first. But while many changes are waiting, a recent change that another one
may soon follow is held back, and finished task runs go first. So a server gets all states of a short job together, or
its final state alone, which is much less work for it than three states one by one.
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

UNSENT_LIMIT = 500
"""Unsent changes above which "auto" skips the intermediate states of finished jobs."""

HURRIED_UNSENT_LIMIT = 50
"""The same limit while the process is about to end."""

HOLD_BACK_SECONDS = 0.5
"""Time for which a change of an unfinished task run is held back."""

HOLD_BACK_LIMIT = 50
"""Unsent changes up to which none is held back: half a second's work for the slowest server."""


class UnsentChanges:
    """A queue of state changes. Any thread may call `append`; the other methods are for one thread at a time."""

    def __init__(self, history: History, *, clock: Callable[[], float] = time.monotonic) -> None:
        if history not in ("auto", "full", "final"):
            raise ValueError(f"history={history!r} is unknown: choose 'auto', 'full' or 'final'")
        self.omitted = 0
        """Intermediate states that were skipped, because their jobs had finished."""
        self.is_hurried = False
        """Whether only finished jobs are sent, with few intermediate states, because the process is about to end."""
        self._history = history
        self._clock = clock
        self._inbox: deque[tuple[AnyHistory, Any]] = deque()
        self._waiting: deque[tuple[float, AnyHistory]] = deque()
        """The task runs with unsent changes, each with the time since when it has some."""
        self._finished: deque[AnyHistory] = deque()
        """The finished ones of them. A task run sent from one queue is dropped from the other at its turn there."""
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._count or self._inbox)

    def append(self, history: TaskRunHistory[Step], step: Step) -> None:
        """Append a state change of a task run."""
        self._inbox.append((history, step))

    def take_in(self) -> None:
        """Sort the appended changes into the queues. Not done in `append`, which must be quick."""
        now = self._clock()
        for _ in range(len(self._inbox)):
            history, step = self._inbox.popleft()
            if not history.unsent:
                self._waiting.append((now, history))
            history.add(step)
            self._count += 1
            if history.is_finished:
                self._finished.append(history)
                self._skip_if_behind(history)

    def next_events(self, limit: int, flow: FlowRunFacts) -> list[StateEvent]:
        """Remove the changes to be sent next, at most `limit`, and return their events."""
        self.take_in()
        events: list[StateEvent] = []
        while len(events) < limit and (history := self._next()) is not None:
            if history.is_finished:
                self._skip_if_behind(history)
            while history.unsent and len(events) < limit:
                events.append(history.next_event(flow))
                self._count -= 1
        return events

    def final_events(self, flow: FlowRunFacts) -> Iterator[StateEvent]:
        """Yield the unsent final states. For the end, when nothing more is sent."""
        for history in list(self.finished()):
            self._skip_intermediate(history)
            yield history.next_event(flow)

    def take_finished(self, flow: FlowRunFacts, limit: int) -> list[StateEvent]:
        """Remove the task runs that have finished, the oldest first, and return their events, `limit` or a few more."""
        self.take_in()
        events: list[StateEvent] = []
        while self._finished and len(events) < limit:
            history = self._finished.popleft()
            self._skip_if_behind(history)
            self._count -= len(history.unsent)
            while history.unsent:
                events.append(history.next_event(flow))
        return events

    @property
    def inbox_size(self) -> int:
        """The number of changes that are not sorted in yet."""
        return len(self._inbox)

    @property
    def finished_count(self) -> int:
        """The number of task runs that have finished, at most a few more than those that are not sent."""
        return len(self._finished)

    def release_sent(self) -> None:
        """Forget the task runs without unsent changes, which would otherwise stay until their turn to be sent."""
        self._waiting = deque(item for item in self._waiting if item[1].unsent)

    def finished(self) -> Iterator[AnyHistory]:
        """Return the task runs whose final state is not sent."""
        self.take_in()
        # A task run that a transaction rolls back after its end is in the queue twice.
        return iter(dict.fromkeys(history for history in self._finished if history.unsent and history.is_finished))

    def _next(self) -> AnyHistory | None:
        """Return the task run to be sent next."""
        while self._waiting and not self._waiting[0][1].unsent:
            self._waiting.popleft()
        while self._finished and not self._finished[0].unsent:
            self._finished.popleft()
        if self._waiting and not self.is_hurried and self._is_due(*self._waiting[0]):
            return self._waiting[0][1]
        return self._finished[0] if self._finished else None

    def _is_due(self, since: float, history: AnyHistory) -> bool:
        few = self._count <= HOLD_BACK_LIMIT
        return history.is_finished or few or since + HOLD_BACK_SECONDS <= self._clock()

    def _skip_if_behind(self, history: AnyHistory) -> None:
        """Skip the intermediate states of a finished job, if the mode and the number of unsent changes ask for it."""
        is_behind = self._count > (HURRIED_UNSENT_LIMIT if self.is_hurried else UNSENT_LIMIT)
        if self._history == "final" or (self._history == "auto" and is_behind):
            self._skip_intermediate(history)

    def _skip_intermediate(self, history: AnyHistory) -> None:
        omitted = history.skip_intermediate()
        self.omitted += omitted
        self._count -= omitted
