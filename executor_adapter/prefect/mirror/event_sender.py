"""Sends state events to a server no faster than it records them, and makes sure that final states arrive.

    outbox ──► in flight ──► arrived ──► recorded
       ▲           │            │
       └── lost ◄──┴────────────┘

`pacing` limits the events in flight; `delivery` finds out what has become of them.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import httpx

from executor_adapter.prefect.mirror.delivery import DeliveryTotals, DeliveryTracker, EventBatch
from executor_adapter.prefect.mirror.event_feed import EventFeed
from executor_adapter.prefect.mirror.outbox import Outbox
from executor_adapter.prefect.mirror.pacing import SendWindow
from executor_adapter.prefect.mirror.server_api import RejectedError, RequestLock, ServerApi
from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MAX_FAULTS = 3
"""Times that the server rejects one state, and accepts another, until that state is given up."""


class EventSender:
    """Sends events to a server, paced by what it has recorded.

    `source(limit)` returns the next events to send, at most `limit`. The caller of `run_once` holds `lock`, which is
    released while the server is waited for.
    """

    def __init__(
        self,
        source: Callable[[int], list[StateEvent]],
        lock: threading.Lock,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.outbox = Outbox(source)
        self._call = RequestLock(lock)
        self._clock = clock
        self._window = SendWindow()
        self._feed = EventFeed(clock)
        self._tracker = DeliveryTracker(self.outbox, self._window, self._call, clock=clock, wall=wall)
        self._knows_server = self._nothing_queued = False
        self._last_accepted: StateEvent | None = None
        """An event that the server has accepted. It accepts it again, unless the server itself is in trouble."""
        self._faults: Counter[StateEvent] = Counter()
        self._deleted: set[str] = set()
        """The flow runs that the server does not have any more."""

    @property
    def totals(self) -> DeliveryTotals:
        """The counts of final states by their delivery."""
        return self._tracker.totals

    @property
    def progress_at(self) -> float:
        """The monotonic time at which the server last recorded something."""
        return self._tracker.progress_at

    @property
    def is_idle(self) -> bool:
        """Whether all events in memory are recorded, inherited ones included; these are ignored in a hurry."""
        queued = self.outbox.resend or (self.outbox.inherited and not self._window.is_hurried)
        return not (queued or self._tracker.unconfirmed)

    @property
    def has_own_events(self) -> bool:
        """Whether events of this mirror are queued for resending or unconfirmed."""
        return bool(self.outbox.resend) or any(batch.is_own for batch in self._tracker.unconfirmed)

    def hurry(self) -> None:
        """Send events at once from now on, whether or not the server keeps pace. Any thread may call this."""
        self._window.is_hurried = True

    def unrecorded(self) -> list[StateEvent]:
        """Return the final states in memory that the server may not have, without those not taken from the source."""
        batches = (batch.events for batch in self._tracker.unconfirmed)
        queues = (*batches, self.outbox.resend, self.outbox.inherited)
        return [event for events in queues for event in events if event.is_final]

    def without_deleted(self, events: Iterable[StateEvent]) -> Iterator[StateEvent]:
        """Yield the events that are not known to be of a deleted flow run, and count the others as given up."""
        for event in events:
            if event.flow_run_id in self._deleted:
                self.totals.set_aside(event)
            else:
                yield event

    def seconds_until_check(self) -> float:
        """Return the seconds until `run_once` asks the server what it has recorded; infinite if nothing was sent."""
        return self._tracker.seconds_until_check(nothing_queued=self._nothing_queued)

    def send_inherited(self, api: ServerApi, events: list[StateEvent]) -> None:
        """Queue inherited events, except those that the server has already: sending these would only keep it busy.

        Raises:
            httpx.HTTPError: the server cannot be reached; no event is lost by that.
        """
        self.outbox.inherited.extend(events)
        known = self._call(api.recorded, [event.task_run_id for event in events])
        for event in events:
            if event.task_run_id in known and known[event.task_run_id].shows(event):
                self.outbox.remove(event)
                self.totals.mark_recorded(event)

    def run_once(self, api: ServerApi) -> bool:
        """Check what the server has recorded, if that is due, and send what the window has room for.

        Returns whether the server was asked, and has answered.

        Raises:
            httpx.HTTPError: the server cannot be reached; no event is lost by that.
        """
        before = self._call.answers
        try:
            if self.seconds_until_check() <= 0.0:
                self._tracker.check(api)
            self._send(api)
        except httpx.HTTPError:
            self._tracker.on_outage()
            raise
        return self._call.answers > before

    def _send(self, api: ServerApi) -> None:
        while (room := self._window.size - self._tracker.events_in_flight) >= self._window.batch_size:
            if not (self._window.is_hurried or self._feed.has_room(functools.partial(self._call, api.is_listed))):
                return
            events = self._take(self._window.batch_size)
            self._nothing_queued = not events
            if not events:
                return
            self._post(api, events, filled_window=room - len(events) < self._window.batch_size)

    def _take(self, limit: int) -> list[StateEvent]:
        """Return the next events, all of this mirror or all inherited.

        Inherited events are sent one request at a time and only while nothing else is in flight, so that new events
        never wait behind more than one request of them.
        """
        events = self.outbox.take(limit)
        if events or self._tracker.in_flight or self._window.is_hurried:
            return events
        return self.outbox.take_inherited(limit)

    def _post(self, api: ServerApi, events: list[StateEvent], filled_window: bool) -> None:
        batch = EventBatch(events, self._clock(), filled_window)
        self._tracker.in_flight.append(batch)
        try:
            self._adapt_to_server(api, events)
            self._set_aside_deleted(api, events)
            if not events:
                return
            self._call(api.send, [event.body for event in events])
        except RejectedError as error:
            self._tracker.in_flight.remove(batch)
            self._bisect(api, events, error)
        except BaseException:
            self._tracker.in_flight.remove(batch)
            self.outbox.put_back(events)
            raise
        else:
            self._tracker.on_sent()
            self._last_accepted = events[-1]
            if self._faults:
                self._faults -= Counter(dict.fromkeys(events, MAX_FAULTS))
            self._feed.on_sent(events)

    def _adapt_to_server(self, api: ServerApi, first: list[StateEvent]) -> None:
        """Ask how the server records, before the first request, and extend the request if the window has grown.

        Not asked earlier, so that a process without events makes no request.
        """
        if self._knows_server:
            return
        self._window.set_transaction_size(self._call(api.transaction_size))
        self._knows_server = True
        if not first[0].is_inherited:  # A request holds events of this mirror, or inherited ones, not both.
            first += self._take(self._window.batch_size - len(first))

    def _set_aside_deleted(self, api: ServerApi, events: list[StateEvent]) -> None:
        """Drop the events of deleted flow runs, those in flight included.

        Asked before each request: the server's recorder fails for all that it gets together with one of these, plain
        tasks of others included, and tries it again and again.
        """
        ids = {event.flow_run_id for event in events} - {""}
        if unknown := ids - self._deleted:
            self._deleted |= self._call(api.deleted_flow_runs, list(unknown))
        if not ids.isdisjoint(self._deleted):
            if self._last_accepted is not None and self._last_accepted.flow_run_id in self._deleted:
                self._last_accepted = None
            for flow_run_id, count in self._tracker.set_aside(self._deleted).items():
                if flow_run_id in unknown:
                    logger.warning(
                        "flow run %s was deleted, or is not on this server: %d states of its task runs, and all later"
                        " ones, are not sent",
                        flow_run_id,
                        count,
                    )

    def _bisect(self, api: ServerApi, events: list[StateEvent], error: RejectedError) -> None:
        """Send the events in halves, so that one that the server cannot take does not hold up the others.

        Raises:
            httpx.NetworkError: the server rejects all events, which is trouble of its own or of a proxy's.
        """
        if len(events) > 1:
            middle = len(events) // 2
            self.outbox.put_back(events[middle:])
            self._post(api, events[:middle], filled_window=False)
            return
        (event,) = events
        self.outbox.append(event)  # Behind the others, which show whether the server rejects this one only.
        if not self._accepts_another(api, self._faults[event] + 1):
            raise httpx.NetworkError(f"the server accepts no events: {error}")
        self._faults[event] += 1
        if self._faults[event] >= MAX_FAULTS:
            self.outbox.remove(event)
            del self._faults[event]
            self.totals.give_up(event, error)

    def _accepts_another(self, api: ServerApi, times: int) -> bool:
        """Return whether the server accepts an earlier event again, so many times in a row.

        Another number of times for each fault, since a load balancer may alternate between servers of which one is in
        trouble. Until the server has accepted an event, it is not known to accept any.
        """
        if self._last_accepted is None:
            return False
        try:
            for _ in range(times):
                self._call(api.send, [self._last_accepted.body])
        except RejectedError:
            return False
        return True
