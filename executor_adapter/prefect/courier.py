"""Brings state events to a server at the pace at which it records them, and sees to it that final states arrive.

    again ─┐
           ├──► sent ──► arrived ──► recorded
    source ┘      │         │
      ▲           └── lost ◄┘
      └─ again ◄──────┘

The server records events in the order in which it gets them, so a batch has arrived when its last event has. Then its
final states are counted: cheap for the server, and exact, since the ids are given. What does not add up after a while
is looked at one by one, and what the server has lost (it was restarted, or its queue was full) is told again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from executor_adapter.prefect.pacing import Pace
from executor_adapter.prefect.server_api import Recorded, RefusedError, ServerApi
from executor_adapter.prefect.state_events import TICK, StateEvent

logger = logging.getLogger("executor_adapter.prefect")

PATIENCE = 15.0
"""Seconds without any progress after which what was sent is looked at one by one."""
PATIENCE_AFTER_LOSS = 4.0
"""The same, where the server was away meanwhile: it may have been restarted, with nothing of what it had queued."""
COUNT_PATIENCE = 3.0
"""Seconds for which the counts of a batch that has arrived may be short: two recorders may overtake one another."""

MOST_TELLINGS = 8
"""A state that the server has lost so often is given up: the fault is not chance."""


class _Batch:
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


class Courier:
    """See the module. `source(n)`: at most n events to be sent next. `lock` is held by whoever calls `turn`, which
    lets go of it while it waits for the server: so others may look at, and take, what is on its way."""

    def __init__(
        self,
        source: Callable[[int], list[StateEvent]],
        lock: threading.Lock,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.again: deque[StateEvent] = deque()
        """To be sent before anything of the source."""
        self.given_up: list[StateEvent] = []
        """Final states that the server refuses, or loses each time."""
        self.recorded = 0
        """Final states that the server is known to have, but for those of the spool."""
        self.told_again = 0
        self.progress_at = clock()
        """When the server last showed that it records."""
        self._source = source
        self._lock = lock
        self._clock = clock
        self._wall = wall
        self._pace = Pace()
        self._sent: deque[_Batch] = deque()
        self._arrived: list[_Batch] = []
        self._looked_at = float("-inf")
        self._was_away = False
        self._patience = PATIENCE

    @property
    def is_idle(self) -> bool:
        """Whether all that was taken from the source has arrived."""
        return not (self.again or self._sent or self._arrived)

    def hurry(self) -> None:
        """Send all there is at once from now on, whether or not the server keeps pace; from any thread."""
        self._pace.hurries = True

    def unrecorded(self) -> list[StateEvent]:
        """Final states on their way, that the server may not have."""
        batches = (batch.events for batch in (*self._arrived, *self._sent))
        return [event for events in (*batches, self.again) for event in events if event.is_final]

    def turn(self, api: ServerApi) -> None:
        """Look at what has become of what was sent, and send what there is room for.

        Raises:
            httpx.HTTPError: the server is away; nothing is lost by it.
        """
        try:
            if (self._sent or self._arrived) and self._clock() >= self._looked_at + self._pace.look_seconds:
                self._looked_at = self._clock()
                self._look(api)
            self._send(api)
        except httpx.HTTPError:
            self._was_away = True
            raise

    # --- sending ---

    def _send(self, api: ServerApi) -> None:
        while (room := self._pace.window - sum(len(batch.events) for batch in self._sent)) > 0:
            events = self._take(min(room, self._pace.batch))
            if not events:
                return
            self._post(api, events, was_full=room <= len(events))

    def _take(self, most: int) -> list[StateEvent]:
        events = [self.again.popleft() for _ in range(min(most, len(self.again)))]
        return events + self._source(most - len(events)) if len(events) < most else events

    def _post(self, api: ServerApi, events: list[StateEvent], was_full: bool) -> None:
        if not self._sent:
            self.progress_at = self._clock()  # the server had nothing of ours to record until now
        batch = _Batch(events, self._clock(), was_full)
        self._sent.append(batch)
        try:
            self._ask(api.send, [event.body for event in events])
        except RefusedError as error:
            self._sent.remove(batch)
            self._narrow_down(api, events, error)
        except BaseException:
            self._sent.remove(batch)
            self.again.extendleft(reversed(events))
            raise

    def _narrow_down(self, api: ServerApi, events: list[StateEvent], error: RefusedError) -> None:
        """Send the halves, so that one event that the server cannot take does not keep the others from it."""
        if len(events) > 1:
            middle = len(events) // 2
            self.again.extendleft(reversed(events[middle:]))
            self._post(api, events[:middle], was_full=False)
            return
        logger.error("the server refuses state %s of task run %s: %s", events[0].name, events[0].task_run_id, error)
        self.given_up += [event for event in events if event.is_final]

    # --- looking ---

    def _look(self, api: ServerApi) -> None:
        self._see_what_arrived(api)
        self._count_finals(api)
        now = self._clock()
        patience = PATIENCE_AFTER_LOSS if self._was_away else self._patience
        if self._sent and now - self.progress_at > patience:
            self._patience = min(120.0, 2 * patience)
            self._examine(api, list(self._sent))
        short = [batch for batch in self._arrived if now - batch.arrived_at > COUNT_PATIENCE]
        if short:
            self._examine(api, short)

    def _see_what_arrived(self, api: ServerApi) -> None:
        if not self._sent:
            return
        known = self._ask(api.recorded, list({batch.events[-1].task_run_id for batch in self._sent}))
        there = [n for n, batch in enumerate(self._sent, 1) if _is_there(batch.events[-1], known)]
        for _ in range(there[-1] if there else 0):
            batch = self._sent.popleft()
            batch.arrived_at = self.progress_at = self._clock()
            self._pace.confirmed(batch.sent_at, batch.arrived_at, was_full=batch.was_full)
            self._arrived.append(batch)
            self._was_away, self._patience = False, PATIENCE

    def _count_finals(self, api: ServerApi) -> None:
        """Confirm the batches that have arrived: all at once, or, if that falls short, each by itself."""
        if self._adds_up(api, self._arrived):
            self._confirm(self._arrived)
            self._arrived = []
        elif len(self._arrived) > 1:
            right = [batch for batch in self._arrived if self._adds_up(api, [batch])]
            self._confirm(right)
            self._arrived = [batch for batch in self._arrived if batch not in right]

    def _adds_up(self, api: ServerApi, batches: Iterable[_Batch]) -> bool:
        by_name: defaultdict[str, set[str]] = defaultdict(set)
        for batch in batches:
            for event in batch.finals:
                by_name[event.name].add(event.task_run_id)
        return all(self._ask(api.count, list(ids), name) == len(ids) for name, ids in by_name.items())

    def _confirm(self, batches: Iterable[_Batch]) -> None:
        for batch in batches:
            for event in batch.finals:
                self._record(event)

    def _record(self, event: StateEvent) -> None:
        if event.origin is None:
            self.recorded += 1
        else:
            event.origin.recorded()

    def _examine(self, api: ServerApi, batches: list[_Batch]) -> None:
        """Look at each event of the batches, and tell those again that the server does not have."""
        ids = dict.fromkeys(event.task_run_id for batch in batches for event in batch.events)
        known = self._ask(api.recorded, list(ids))
        lost: list[StateEvent] = []
        for batch in batches:
            (self._sent if batch in self._sent else self._arrived).remove(batch)
            for event in batch.events:
                if not _is_there(event, known):
                    lost.append(event)
                elif event.is_final:
                    self._record(event)
        self.progress_at = self._clock()
        self._tell_again(lost, known)

    def _tell_again(self, lost: list[StateEvent], known: dict[str, Recorded]) -> None:
        if lost:
            logger.info("the server has lost %d states: telling it again", len(lost))
        told: list[StateEvent] = []
        for event in lost:
            if not event.is_final:
                told.append(event)
            elif event.tellings >= MOST_TELLINGS:
                self.given_up.append(event)
            else:
                self.told_again += 1
                told.append(event.again(self._time_of(event, known.get(event.task_run_id))))
        self.again.extendleft(reversed(told))

    def _time_of(self, event: StateEvent, recorded: Recorded | None) -> float:
        """Its own, unless the server has a newer state: it would take an older one for passed."""
        return event.at if recorded is None or recorded.at < event.at else max(self._wall(), recorded.at + TICK)

    def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        self._lock.release()
        try:
            return question(*args)
        finally:
            self._lock.acquire()


def _is_there(event: StateEvent, known: dict[str, Recorded]) -> bool:
    """Whether the server has the event: as its newest state, or, of a passed one, an even newer one.

    A transaction may have rolled a completed task run back since.
    """
    recorded = known.get(event.task_run_id)
    if recorded is None or recorded.at < event.at - TICK / 2:
        return False
    return not event.is_final or recorded.name in {event.name, "RolledBack"}
