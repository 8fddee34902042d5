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

import contextlib
import functools
import logging
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from executor_adapter.prefect.mirror.event_feed import EventFeed
from executor_adapter.prefect.mirror.pacing import Batch, SendWindow
from executor_adapter.prefect.mirror.server_api import FaultError, Recorded, RefusedError, ServerApi
from executor_adapter.prefect.mirror.state_events import TICK, StateEvent

logger = logging.getLogger("executor_adapter.prefect")

RECORDING_STALL_TIMEOUT = 15.0
"""Seconds without any progress after which what was sent is looked at one by one."""
STALL_TIMEOUT_AFTER_OUTAGE = 4.0
"""The same, where the server was away meanwhile: it may have been restarted, with nothing of what it had queued."""
SHORT_SECONDS = 1.0
"""For which the counts of batches that have arrived are commonly short: two recorders overtake one another."""
SHORT_COUNT_TIMEOUT = 3.0
"""Seconds after which a batch whose count is short is looked at."""

MOST_FAULTS = 3
"""Times that the server breaks down over one state, and not over another, until that one is given up."""

MOST_TELLINGS = 8
"""A state that the server has lost so often is given up: the fault is not chance."""


class EventSender:
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
        self.left_behind: deque[StateEvent] = deque()
        """Those of the spool: to be sent while there is nothing else, and not in a hurry."""
        self.given_up: list[StateEvent] = []
        """Final states that the server refuses, or loses each time."""
        self.recorded = 0
        """Final states that the server is known to have, but for those of the spool."""
        self.resent = 0
        self.progress_at = clock()
        """When the server last showed that it records."""
        self._source = source
        self._lock = lock
        self._clock = clock
        self._wall = wall
        self._pace = SendWindow()
        self._feed = EventFeed(clock)
        self._sent: deque[Batch] = deque()
        self._arrived: list[Batch] = []
        self._looked_at = float("-inf")
        self._has_met = self._nothing_waits = False
        self._taken: StateEvent | None = None
        """One that the server has taken: it takes it again, unless it is in trouble itself."""
        self._faults: Counter[StateEvent] = Counter()
        self._was_away = False
        self._stall_timeout = RECORDING_STALL_TIMEOUT

    @property
    def is_idle(self) -> bool:
        """Whether all that there is to send has arrived."""
        waits = self.again or (self.left_behind and not self._pace.hurries)
        return not (waits or self._sent or self._arrived)

    @property
    def has_own(self) -> bool:
        """Whether anything that was taken from the source is on its way."""
        return bool(self.again) or any(batch.is_own for batch in (*self._arrived, *self._sent))

    def hurry(self) -> None:
        """Send all there is at once from now on, whether or not the server keeps pace; from any thread."""
        self._pace.hurries = True

    def unrecorded(self) -> list[StateEvent]:
        """Final states on their way, that the server may not have."""
        batches = (batch.events for batch in (*self._arrived, *self._sent))
        return [event for events in (*batches, self.again, self.left_behind) for event in events if event.is_final]

    def seconds_to_look(self) -> float:
        """Until it is time to look at what has become of what was sent; infinite, if nothing was."""
        if not (self._sent or self._arrived):
            return math.inf
        last = self._on_their_way() if self._nothing_waits else None
        return self._looked_at + self._pace.look_seconds(self._clock(), last=last) - self._clock()

    def _on_their_way(self) -> int:
        return sum(len(batch.events) for batch in self._sent)

    def send_also(self, api: ServerApi, left_behind: list[StateEvent]) -> None:
        """Send these of the spool too, but for those that the server has, which would only keep it busy.

        Raises:
            httpx.HTTPError: the server is away; nothing is lost by it.
        """
        self.left_behind.extend(left_behind)
        known = self._ask(api.recorded, [event.task_run_id for event in left_behind])
        for event in left_behind:
            if event.task_run_id in known and known[event.task_run_id].shows(event):
                self.left_behind.remove(event)
                self._record(event)

    def turn(self, api: ServerApi) -> None:
        """Look at what has become of what was sent, and send what there is room for.

        Raises:
            httpx.HTTPError: the server is away; nothing is lost by it.
        """
        try:
            if self.seconds_to_look() <= 0.0:
                self._looked_at = self._clock()
                self._look(api)
            self._send(api)
        except httpx.HTTPError:
            self._was_away = True
            raise

    # --- sending ---

    def _send(self, api: ServerApi) -> None:
        while (room := self._pace.window - self._on_their_way()) >= self._pace.batch:
            if not (self._pace.hurries or self._feed.has_room(functools.partial(self._ask, api.is_listed))):
                return
            events = self._take(self._pace.batch)
            self._nothing_waits = not events
            if not events:
                return
            self._post(api, events, was_full=room - len(events) < self._pace.batch)

    def _take(self, most: int) -> list[StateEvent]:
        """All from the source; or all of the spool: one request at a time, and what comes next waits for no more."""
        events = _first(self.again, most)
        if len(events) < most:
            events += self._source(most - len(events))
        return events or ([] if self._sent or self._pace.hurries else _first(self.left_behind, most))

    def _put_back(self, events: list[StateEvent]) -> None:
        """To be sent next."""
        for event in reversed(events):
            self._queue_of(event).appendleft(event)

    def _queue_of(self, event: StateEvent) -> deque[StateEvent]:
        return self.again if event.origin is None else self.left_behind

    def _post(self, api: ServerApi, events: list[StateEvent], was_full: bool) -> None:
        batch = Batch(events, self._clock(), was_full)
        self._sent.append(batch)
        try:
            self._meet(api, events)
            self._ask(api.send, [event.body for event in events])
        except (RefusedError, FaultError) as error:
            self._sent.remove(batch)
            self._narrow_down(api, events, error)
        except BaseException:
            self._sent.remove(batch)
            self._put_back(events)
            raise
        else:
            if len(self._sent) == 1:
                self.progress_at = self._clock()  # the server had nothing of ours to record until now
            self._taken = events[-1]
            self._feed.sent(events)

    def _meet(self, api: ServerApi, first: list[StateEvent]) -> None:
        """Learn how the server records, before it gets the first, which then may be more; who has nothing to tell asks
        nothing."""
        if not self._has_met:
            self._pace.expect(self._ask(api.recorded_at_once))
            self._has_met = True
            if first[0].origin is None:  # a request is of one's own or of the spool
                first += self._take(self._pace.batch - len(first))

    def _narrow_down(self, api: ServerApi, events: list[StateEvent], error: RefusedError | FaultError) -> None:
        """Send the halves, so that one event that the server cannot take does not keep the others from it."""
        if len(events) > 1:
            middle = len(events) // 2
            self._put_back(events[middle:])
            self._post(api, events[:middle], was_full=False)
            return
        queue = self._queue_of(events[0])
        queue.append(events[0])  # behind others, which show whether it is the only one
        if isinstance(error, FaultError) and not self._is_at_fault(api, events[0]):
            raise httpx.NetworkError(f"the server is in trouble: {error}")
        queue.remove(events[0])
        self._faults.pop(events[0], None)
        self._give_up(events[0], error)

    def _is_at_fault(self, api: ServerApi, event: StateEvent) -> bool:
        """Whether it is the event over which the server breaks down, since it takes another meanwhile; time and again,
        as the server may have been in trouble just then."""
        if self._taken is not None:
            with contextlib.suppress(FaultError):
                self._ask(api.send, [self._taken.body])
                self._faults[event] += 1
        return self._faults[event] >= MOST_FAULTS

    def _give_up(self, event: StateEvent, error: Exception) -> None:
        logger.error("the server does not take state %s of task run %s: %s", event.name, event.task_run_id, error)
        if event.origin is not None:
            event.origin.recorded()  # it never will be, and would be told by each mirror to come
        elif event.is_final:
            self.given_up.append(event)

    # --- looking ---

    def _look(self, api: ServerApi) -> None:
        self._see_what_arrived(api)
        self._count_finals(api)
        now = self._clock()
        stall_timeout = STALL_TIMEOUT_AFTER_OUTAGE if self._was_away else self._stall_timeout
        if self._sent and now - self.progress_at > stall_timeout:
            self._stall_timeout = min(120.0, 2 * stall_timeout)
            self._examine(api, list(self._sent))
        short = [batch for batch in self._arrived if now - batch.arrived_at > SHORT_COUNT_TIMEOUT]
        if short:
            self._examine(api, short)

    def _see_what_arrived(self, api: ServerApi) -> None:
        if not self._sent:
            return
        known = self._ask(api.recorded, list({batch.events[-1].task_run_id for batch in self._sent}))
        there = [n for n, batch in enumerate(self._sent, 1) if _is_there(batch.events[-1], known)]
        arrived = [self._sent.popleft() for _ in range(there[-1] if there else 0)]
        if arrived:
            self._pace.arrived(sum(len(batch.events) for batch in arrived), arrived[0].sent_at, self._clock())
        for batch in arrived:
            batch.arrived_at = self.progress_at = self._clock()
            self._pace.confirmed(batch.sent_at, batch.arrived_at, was_full=batch.was_full)
            self._arrived.append(batch)
            self._was_away, self._stall_timeout = False, RECORDING_STALL_TIMEOUT

    def _count_finals(self, api: ServerApi) -> None:
        """Confirm the batches that have arrived: all at once, or, if that falls short for a while, each by itself."""
        if self._adds_up(api, self._arrived):
            self._confirm(self._arrived)
            self._arrived = []
        elif self._clock() - self._arrived[0].arrived_at > SHORT_SECONDS:
            right = [batch for batch in self._arrived if self._adds_up(api, [batch])]
            self._confirm(right)
            self._arrived = [batch for batch in self._arrived if batch not in right]

    def _adds_up(self, api: ServerApi, batches: Iterable[Batch]) -> bool:
        by_name: defaultdict[str, set[str]] = defaultdict(set)
        for batch in batches:
            for event in batch.finals:
                by_name[event.name].add(event.task_run_id)
        return all(self._ask(api.count, list(ids), name) == len(ids) for name, ids in by_name.items())

    def _confirm(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            for event in batch.finals:
                self._record(event)

    def _record(self, event: StateEvent) -> None:
        if event.origin is None:
            self.recorded += 1
        else:
            event.origin.recorded()

    def _examine(self, api: ServerApi, batches: list[Batch]) -> None:
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
                self._give_up(event, RuntimeError("it loses it each time"))
            else:
                self.resent += 1
                told.append(event.again(self._time_of(event, known.get(event.task_run_id))))
        self._put_back(told)

    def _time_of(self, event: StateEvent, recorded: Recorded | None) -> float:
        """Its own, unless the server has a newer state: it would take an older one for passed."""
        return event.at if recorded is None or recorded.at < event.at else max(self._wall(), recorded.at + TICK)

    def _ask(self, question: Callable[..., Any], *args: Any) -> Any:
        self._lock.release()
        try:
            return question(*args)
        finally:
            self._lock.acquire()


def _first(queue: deque[StateEvent], most: int) -> list[StateEvent]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def _is_there(event: StateEvent, known: dict[str, Recorded]) -> bool:
    recorded = known.get(event.task_run_id)
    return recorded is not None and recorded.covers(event)
