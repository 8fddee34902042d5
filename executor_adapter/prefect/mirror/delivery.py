"""Finds out which of the sent events the server has recorded, and resends the lost ones.

    in flight ──► arrived ──► recorded
        │            │
        └──► lost ◄──┘

The server records events in the order in which it gets them, so a batch has arrived when its last event is recorded.
Then its final states are counted: that is cheap for the server, and exact, because the ids are given. Where the count
is short for a while, or the server makes no progress, each event is looked up. An event that the server has lost,
because it was restarted or its queue was full, goes back to the outbox.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence, Set

from executor_adapter.prefect.mirror.outbox import Outbox
from executor_adapter.prefect.mirror.pacing import SendWindow
from executor_adapter.prefect.mirror.server_api import Recorded, RequestLock, ServerApi
from executor_adapter.prefect.mirror.state_events import CLOCK_RESOLUTION_SECONDS, StateEvent

logger = logging.getLogger("executor_adapter.prefect")

RECORDING_STALL_TIMEOUT = 15.0
"""Seconds without progress after which each event in flight is looked up."""

MAX_RECORDING_STALL_TIMEOUT = 120.0
"""The same after repeated look-ups without progress, each of which doubles the time to the next."""

STALL_TIMEOUT_AFTER_OUTAGE = 4.0
"""The same after an outage: the server may have been restarted without its queues."""

SHORT_COUNT_SECONDS = 1.0
"""Time for which a count of final states is often short, because the server's recorders overtake one another."""

SHORT_COUNT_TIMEOUT = 3.0
"""Seconds after which the events of a batch whose count is short are looked up."""

MAX_SENDS = 8
"""A state that the server has lost this often is given up: that is not chance."""


class EventBatch:
    """The events of one request."""

    __slots__ = ("arrived_at", "events", "filled_window", "sent_at")

    def __init__(self, events: list[StateEvent], sent_at: float, filled_window: bool) -> None:
        self.events = events
        self.sent_at = sent_at
        self.filled_window = filled_window
        """Whether the window, and not a lack of events, ended the sending after this batch."""
        self.arrived_at = 0.0

    @property
    def finals(self) -> list[StateEvent]:
        """The events of final states."""
        return [event for event in self.events if event.is_final]

    @property
    def is_own(self) -> bool:
        """Whether the events are of this mirror, not inherited."""
        return not self.events[0].is_inherited


class DeliveryTotals:
    """Counts the final states by their delivery. `end` takes each event that is over."""

    def __init__(self, end: Callable[[StateEvent], object]) -> None:
        self.recorded = 0
        """Final states of this mirror that the server is known to have."""
        self.resent = 0
        """Final states that were sent again."""
        self.given_up: list[str] = []
        """The jobs of this mirror whose final states the server refuses, loses each time, or cannot record."""

        self._end = end

    def mark_recorded(self, event: StateEvent) -> None:
        """Count a state as recorded."""
        self.recorded += event.is_final and not event.is_inherited
        self._end(event)

    def give_up(self, event: StateEvent, reason: object) -> None:
        """Do not send a state again, nor keep it: each later mirror would fail with it too."""
        logger.error("the server does not accept state %s of task run %s: %s", event.name, event.task_run_id, reason)
        self.set_aside(event)

    def set_aside(self, event: StateEvent) -> None:
        """Count a state as one that is never sent."""
        if event.is_final and not event.is_inherited:
            self.given_up.append(event.job_id)
        self._end(event)


class DeliveryTracker:
    """Keeps the sent batches until the server has recorded them. `call` makes requests."""

    def __init__(
        self,
        outbox: Outbox,
        window: SendWindow,
        call: RequestLock,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.totals = DeliveryTotals(outbox.end)
        self.in_flight: deque[EventBatch] = deque()
        self.progress_at = clock()
        """The monotonic time at which the server last recorded something."""
        self._arrived: list[EventBatch] = []
        self._outbox = outbox
        self._window = window
        self._call = call
        self._clock = clock
        self._wall = wall
        self._checked_at = float("-inf")
        self._had_outage = False
        self._stall_timeout = RECORDING_STALL_TIMEOUT

    @property
    def unconfirmed(self) -> Sequence[EventBatch]:
        """The batches that the server may not have recorded whole."""
        return (*self._arrived, *self.in_flight)

    @property
    def events_in_flight(self) -> int:
        """Number of events that have not arrived."""
        return sum(len(batch.events) for batch in self.in_flight)

    def on_sent(self) -> None:
        """Note that the server has accepted the newest batch in flight."""
        if len(self.in_flight) == 1:
            self.progress_at = self._clock()  # Until now there was nothing that the server could have recorded.

    def set_aside(self, flow_run_ids: Set[str]) -> Counter[str]:
        """Drop all events of deleted flow runs, sent or not, and return how many they were of each."""
        dropped: Counter[str] = Counter()
        for queue in (*(batch.events for batch in self.unconfirmed), self._outbox.resend, self._outbox.inherited):
            events = list(queue)
            queue.clear()
            for event in events:
                if event.flow_run_id in flow_run_ids:
                    dropped[event.flow_run_id] += 1
                    self.totals.set_aside(event)
                else:
                    queue.append(event)
        self._arrived = [batch for batch in self._arrived if batch.events]
        self.in_flight = deque(batch for batch in self.in_flight if batch.events)
        return dropped

    def on_outage(self) -> None:
        """Note that the server could not be reached."""
        self._had_outage = True

    def seconds_until_check(self, *, nothing_queued: bool) -> float:
        """Return the seconds until `check` is due; infinite if nothing is unconfirmed."""
        if not self.unconfirmed:
            return math.inf
        now, last = self._clock(), self.events_in_flight if nothing_queued else None
        return self._checked_at + self._window.check_interval(now, last=last, since=self.progress_at) - now

    def check(self, api: ServerApi) -> None:
        """Ask the server what it has recorded.

        Raises:
            httpx.HTTPError: the server cannot be reached; no event is lost by that.
        """
        self._checked_at = self._clock()
        self._find_arrived(api)
        self._count_finals(api)
        self._look_up_overdue(api)

    def _find_arrived(self, api: ServerApi) -> None:
        if not self.in_flight:
            return
        known = self._call(api.recorded, list({batch.events[-1].task_run_id for batch in self.in_flight}))
        arrived_counts = [n for n, batch in enumerate(self.in_flight, 1) if _is_recorded(batch.events[-1], known)]
        arrived = [self.in_flight.popleft() for _ in range(arrived_counts[-1] if arrived_counts else 0)]
        if arrived:
            self._on_arrived(arrived)

    def _on_arrived(self, batches: list[EventBatch]) -> None:
        now = self._clock()
        self._window.on_arrived(sum(len(batch.events) for batch in batches), batches[0].sent_at, now)
        for batch in batches:
            batch.arrived_at = now
            self._window.on_batch_arrived(batch.sent_at, now, filled_window=batch.filled_window)
        self._arrived += batches
        self.progress_at = now
        self._had_outage, self._stall_timeout = False, RECORDING_STALL_TIMEOUT

    def _count_finals(self, api: ServerApi) -> None:
        """Confirm the arrived batches: all in one count, or one by one where that count has been short for a while."""
        if self._all_counted(api, self._arrived):
            self._confirm(self._arrived)
            self._arrived = []
        elif self._clock() - self._arrived[0].arrived_at > SHORT_COUNT_SECONDS:
            counted = [batch for batch in self._arrived if self._all_counted(api, [batch])]
            self._confirm(counted)
            self._arrived = [batch for batch in self._arrived if batch not in counted]

    def _all_counted(self, api: ServerApi, batches: Iterable[EventBatch]) -> bool:
        by_name: defaultdict[str, set[str]] = defaultdict(set)
        for batch in batches:
            for event in batch.finals:
                by_name[event.name].add(event.task_run_id)
        return all(self._call(api.count, list(ids), name) == len(ids) for name, ids in by_name.items())

    def _confirm(self, batches: Iterable[EventBatch]) -> None:
        for batch in batches:
            for event in batch.events:
                self.totals.mark_recorded(event)

    def _look_up_overdue(self, api: ServerApi) -> None:
        now = self._clock()
        timeout = STALL_TIMEOUT_AFTER_OUTAGE if self._had_outage else self._stall_timeout
        if self.in_flight and now - self.progress_at > timeout:
            self._stall_timeout = min(MAX_RECORDING_STALL_TIMEOUT, 2 * timeout)
            self._look_up(api, list(self.in_flight))
        short = [batch for batch in self._arrived if now - batch.arrived_at > SHORT_COUNT_TIMEOUT]
        if short:
            self._look_up(api, short)

    def _look_up(self, api: ServerApi, batches: list[EventBatch]) -> None:
        """Look up each event of the batches, and resend those that the server does not have."""
        ids = dict.fromkeys(event.task_run_id for batch in batches for event in batch.events)
        known = self._call(api.recorded, list(ids))
        lost: list[StateEvent] = []
        for batch in batches:
            (self.in_flight if batch in self.in_flight else self._arrived).remove(batch)
            for event in batch.events:
                if not _is_recorded(event, known):
                    lost.append(event)
                else:
                    self.totals.mark_recorded(event)
        self.progress_at = self._clock()
        if lost:
            self._resend(lost, known)

    def _resend(self, lost: list[StateEvent], known: dict[str, Recorded]) -> None:
        logger.info("the server has lost %d states; sending them again", len(lost))
        events: list[StateEvent] = []
        for event in lost:
            if not event.is_final:
                events.append(event)
            elif event.send_count >= MAX_SENDS:
                self.totals.give_up(event, f"the server has lost it {MAX_SENDS} times")
            else:
                self.totals.resent += 1
                events.append(event.renewed(self._resend_time(event, known.get(event.task_run_id))))
        self._outbox.back_up(event for event in events if event.row is not None)  # As they are now.
        self._outbox.put_back(events)

    def _resend_time(self, event: StateEvent, recorded: Recorded | None) -> float:
        """Return the event's own time, or a newer one where the server has a newer state and would ignore this one."""
        if recorded is None or recorded.at < event.at:
            return event.at
        return max(self._wall(), recorded.at + CLOCK_RESOLUTION_SECONDS)


def _is_recorded(event: StateEvent, known: dict[str, Recorded]) -> bool:
    recorded = known.get(event.task_run_id)
    return recorded is not None and recorded.covers(event)
