"""Sends state events to a server no faster than it records them, and makes sure that final states arrive.

    outbox ──► in flight ──► arrived ──► recorded
       ▲           │            │
       └── lost ◄──┴────────────┘

The server answers before it has recorded an event. It keeps unrecorded events in queues that drop what exceeds their
limit (10,000 messages, shared by all clients), and works through them in order. So a batch has arrived when its last
event is recorded. Then its final states are counted: that is cheap for the server, and exact, because the ids are
given. Where the count is short for a while, each event is looked up. An event that the server has lost, because it was
restarted or its queue was full, goes back to the outbox.

A server that records nothing for a while has lost the events or is only slow. So the last one in flight is sent once
more: once that is recorded, each one before it is recorded or lost. If it is not, another one of its request is.

A server that records many events in one transaction loses all of them with one that it cannot record. So events that
it has lost three times are suspects. They are sent apart, nothing else being in flight, in ever smaller requests:
one that is given up was alone, and took no others along. Suspects and others take turns.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from executor_adapter.prefect.mirror.events import CHANCE_SENDS, CLOCK_RESOLUTION_SECONDS, StateEvent
from executor_adapter.prefect.mirror.outbox import Outbox
from executor_adapter.prefect.mirror.server import Recorded, RejectedError, ServerApi

logger = logging.getLogger("executor_adapter.prefect")

# --- pace; `make bench` has each number beside another one, with the simulated servers of tests/benchmarks/paced.py ---

MIN_WINDOW = 300
"""Events in flight at first and at least: the fewer there are, the more requests, each of which is work for the server.

A small server, which records 50 a second and loses 0.3 s with each request, has 1,000 states after 23.5 s; with 30 at
least, after 29.4.
"""

MAX_WINDOW = 3_000
"""Events in flight at most: a third of the server's queue, because others use it too.

With ten times as many it drops 10,000 of 20,000 that are sent in a hurry, and states wait 3.3 s, not 1.7, for a server
whose speed changes.
"""

MAX_BATCH_SIZE = 500
"""Events in one request: some 0.8 MB, because many proxies take no more than one.

With 200 a server that writes 500 at once needs 10.8 s for 20,000, not 9.8.
"""

WINDOW_INCREASE = 50
"""Events by which each request that was recorded in time adds to the window, once it has been halved.

Without it a server whose speed changes needs 41.8 s for 12,000, not 40.6.
"""

SLOW_SECONDS = 4.0
"""Time from sending to recorded above which the window is halved.

With 2 s a server whose speed changes needs 46.0 s for 12,000, not 40.6; with 16 s, states wait 7.8 s for a small one,
not 6.4.
"""

MIN_CHECK_INTERVAL = 0.03
MAX_CHECK_INTERVAL = 1.0
"""Seconds between two checks of what is recorded. A direct call of a job task waits for the next one.

With 0.3 s at least, a state that comes alone waits 0.15 s, not 0.02; with 5 s at most, states wait 12.9 s for a server
whose speed changes, not 5.5.
"""

CHECKS = 3
"""Checks in the time that the server is expected to take for what is in flight, or has shown no progress.

With 1, a server that writes 500 at once, and whose speed changes, needs 9.9 s for 12,000, not 6.0; with 30, an average
one is asked 138 times, not 31.
"""

MAX_UNLISTED_EVENTS = 8_000
"""Events that were sent and may not be in the server's list of events, which has a queue of its own.

Without a bound, one that records 3,000 a second and lists 100 leaves 9,140 of 20,000 out of the list.
"""

MAX_IN_MEMORY = 100_000
"""Finished task runs that wait in memory where the file cannot be written, and jobs that are given up by their ids.

Of more the older ones are dropped, or the jobs only counted.
"""

LISTING_STALL_TIMEOUT = 15.0
"""Seconds without progress after which the server is taken to keep no list. Without it all states would wait for it."""

# --- what is lost ---

RECORDING_STALL_TIMEOUT = 10.0
"""Seconds without progress after which the last event in flight is sent once more.

Without it what a killed server has lost is never sent again if nothing follows; with 1 s, a server that takes four
seconds for each write gets 13 events of 900 twice.
"""

SHORT_COUNT_TIMEOUT = 3.0
"""Seconds after which the events of a batch whose count is short are looked up: recorders overtake one another.

Without it, if one of 50 is a second late, 110 states of 3,000 are sent again.
"""

MAX_SENDS = 8
"""A state that the server has lost this often is given up: that is not chance, and it was alone at last.

500 suspects are alone after four more times than `CHANCE_SENDS`.
"""

MAX_FAULTS = 3
"""Times that the server rejects one state, and accepts another, until that state is given up.

Behind a load balancer, one of whose servers is in trouble, one time shows nothing, nor do two.
"""


class SendWindow:
    """A congestion window: how many events may be in flight, by how long the server takes to record them.

    Large enough that the server is never idle, and small enough that a state is recorded a few seconds after it was
    sent: a final state sent in a hurry must not wait behind minutes of others. In a hurry there is no time to measure
    the server's speed, so as much as its queues hold is sent at once.
    """

    def __init__(self) -> None:
        self.is_hurried = False
        self._size = MIN_WINDOW
        self._shrunk_at = -math.inf
        self._events_per_second = math.inf

    @property
    def size(self) -> int:
        """The most events that may be in flight."""
        return MAX_WINDOW if self.is_hurried else self._size

    @property
    def batch_size(self) -> int:
        """Events for one request: a third of the window, so that the server has the next while one is confirmed."""
        return min(MAX_BATCH_SIZE, self.size // 3)

    def on_recorded(self, batches: list[EventBatch], since: float, now: float, *, is_dry: bool) -> None:
        """Adapt the window to batches that are recorded; `since`: when the server could begin with the first.

        `is_dry`: nothing else is in flight, so what they took is the server's way of writing, and not its queue.
        """
        self._events_per_second = sum(len(batch.events) for batch in batches) / max(now - since, MIN_CHECK_INTERVAL)
        for batch in batches:
            if batch.sent_at >= self._shrunk_at:  # Others show nothing about the new size.
                self._adapt(batch, now, is_dry=is_dry)

    def _adapt(self, batch: EventBatch, now: float, *, is_dry: bool) -> None:
        seconds = now - batch.sent_at
        if seconds > SLOW_SECONDS and not is_dry:
            self._size, self._shrunk_at = max(MIN_WINDOW, self._size // 2), now
        elif batch.filled_window:
            # Until the server's limit is found the window grows by what it records.
            added = len(batch.events) if self._shrunk_at == -math.inf else WINDOW_INCREASE
            self._size = min(MAX_WINDOW, self._size + added)

    def check_interval(self, in_flight: int, stalled: float) -> float:
        """Return the seconds between two checks: the shorter, the sooner the server should have recorded all.

        `stalled` is for how long it has recorded nothing.
        """
        expected = max(in_flight / self._events_per_second, stalled)
        return min(MAX_CHECK_INTERVAL, max(MIN_CHECK_INTERVAL, expected / CHECKS))


@dataclass(slots=True, eq=False)
class EventBatch:
    """The events of one request, in flight. It has arrived once its last event is recorded."""

    events: list[StateEvent]
    sent_at: float
    filled_window: bool
    """Whether the window, and not a lack of events, ended the sending after this batch."""
    probes: int = 0
    """How often one of the events was sent once more."""


class EventSender:
    """Sends events to a server, paced by what it has recorded.

    `source(limit)` returns the next events to send, at most `limit`. The caller of `run_once` holds `lock`, which is
    released while the server is waited for: so other threads can read, and take over, what is in flight.
    """

    def __init__(
        self,
        source: Callable[[int], list[StateEvent]],
        lock: threading.Lock,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.outbox = Outbox()
        self.resend: deque[StateEvent] = deque()
        """Events that the server has not taken, or has lost."""
        self.recorded = 0
        """Final states of this mirror that the server is known to have."""
        self.resent = 0
        """Final states that were sent again."""
        self.given_up: list[str] = []
        """The jobs of this mirror whose final states the server refuses, loses each time, or cannot record."""
        self.progress_at = clock()
        """The monotonic time at which the server last recorded something."""
        self._source, self._lock, self._clock, self._wall = source, lock, clock, wall
        self._window = SendWindow()
        self._unlisted: deque[tuple[StateEvent, int]] = deque()
        """The last event of each request that the server's list may not contain, and the number of its events."""
        self._in_flight: list[EventBatch] = []
        """The batches that have not arrived, in the order of their requests."""
        self._suspects: deque[StateEvent] = deque()
        """Events that the server may lose with all that it records together with them."""
        self._arrived: list[tuple[list[StateEvent], float]] = []
        """Events that are recorded or lost, each group with the time from which its events are looked up one by one."""
        self._answers = 0
        """The number of requests that the server has answered."""
        self._checked_at = self._probed_at = self._listing_asked_at = self._listed_at = -math.inf
        self._stands_still = False
        """Whether the server has recorded nothing since a request was last taken to be lost for that."""
        self._is_suspects_turn = False
        """Whether the last request was due to the suspects that were lost most often."""
        self._last_accepted: StateEvent | None = None
        """An event that the server has accepted. It accepts it again, unless the server itself is in trouble."""
        self._deleted: set[str] = set()
        """The flow runs that the server does not have any more."""

    @property
    def _events_in_flight(self) -> int:
        return sum(len(batch.events) for batch in self._in_flight)

    def _events(self) -> Iterator[StateEvent]:
        """Yield the events that were taken from the outbox, or go back to it, and are not known to be recorded."""
        in_flight = (batch.events for batch in self._in_flight)
        arrived = (events for events, _ in self._arrived)
        return itertools.chain(*in_flight, *arrived, self.resend, self._suspects)

    @property
    def is_idle(self) -> bool:
        """Whether all events in memory are recorded, inherited ones included."""
        return not (self._in_flight or self._arrived or self.resend or self._suspects)

    @property
    def _isolates(self) -> bool:
        """Whether each request has to wait until the one before has arrived, because of suspects."""
        return bool(self._suspects) or any(batch.events[0].is_suspect for batch in self._in_flight)

    @property
    def has_own_events(self) -> bool:
        """Whether events of this mirror are queued for resending or unconfirmed."""
        return any(not event.is_inherited for event in self._events())

    def hurry(self) -> None:
        """Send events at once from now on, whether or not the server keeps pace. Any thread may call this."""
        self._window.is_hurried = True

    def unrecorded(self) -> list[StateEvent]:
        """Return the final states in memory that the server may not have, without those not taken from the source."""
        return [event for event in self._events() if event.is_final]

    def without_deleted(self, events: Iterable[StateEvent]) -> Iterator[StateEvent]:
        """Yield the events that are not known to be of a deleted flow run, and count the others as given up."""
        for event in events:
            if event.flow_run_id in self._deleted:
                self._set_aside(event)
            else:
                yield event

    def seconds_until_check(self) -> float:
        """Return the seconds until `run_once` asks the server what it has recorded; infinite if nothing was sent."""
        if not (self._in_flight or self._arrived):
            return math.inf
        now = self._clock()
        return self._checked_at + self._window.check_interval(self._events_in_flight, now - self.progress_at) - now

    def run_once(self, api: ServerApi) -> bool:
        """Check what the server has recorded, if that is due, and send what the window has room for.

        Returns whether the server was asked, and has answered.

        Raises:
            httpx.HTTPError: the server cannot be reached; no event is lost by that.
        """
        before = self._answers
        if self.seconds_until_check() <= 0.0:
            self._check(api)
        self._send(api)
        return self._answers > before

    def _call(self, request: Callable[..., Any], *args: Any) -> Any:
        """Return `request(*args)`, called without the lock."""
        self._lock.release()
        try:
            answer = request(*args)
        finally:
            self._lock.acquire()
        self._answers += 1
        return answer

    # --- sending ---

    def _send(self, api: ServerApi) -> None:
        while (room := self._window.size - self._events_in_flight) >= self._window.batch_size:
            if not self._window.is_hurried and ((self._in_flight and self._isolates) or self._is_list_behind(api)):
                return
            events = self._take(self._window.batch_size)
            if not events:
                return
            self._post(api, events, filled_window=room - len(events) < self._window.batch_size)

    def _take(self, limit: int) -> list[StateEvent]:
        """Return the events of the next request. In a hurry suspects are behind all others."""
        # One request of inherited events at a time, so that new events never wait behind more of them.
        inherits = not (self._in_flight or self._window.is_hurried)
        self._is_suspects_turn = inherits and not self._is_suspects_turn
        events = self._take_suspects(limit, worst=True) if self._is_suspects_turn else []
        events = events or self._take_others(limit, inherits=inherits)
        if not (events or self._in_flight):
            # One of those that are hardly to blame shows whether the server records anything.
            events = self._take_suspects(1 if self._stands_still else limit, worst=False)
        return events

    def _take_others(self, limit: int, *, inherits: bool) -> list[StateEvent]:
        """Return events that were sent in vain, then those in the file, then new ones, else those of another mirror."""
        events = [self.resend.popleft() for _ in range(min(limit, len(self.resend)))]
        if self.outbox.stored and len(events) < limit:
            events += self.outbox.take(limit - len(events))
        events += self._source(limit - len(events))
        return self.outbox.take_over(limit) if inherits and self.outbox.is_heir and not events else events

    def _take_suspects(self, batch_size: int, *, worst: bool) -> list[StateEvent]:
        """Return suspects that were lost equally often: those that were it most often, or least often.

        The more often that was, the fewer they are, until each is alone.
        """
        counts = (event.send_count for event in self._suspects)
        count = (max if worst else min)(counts, default=CHANCE_SENDS + 1)
        size = max(1, batch_size >> 2 * (count - CHANCE_SENDS))
        return _removed(self._suspects, lambda event: event.send_count == count, size)

    def take_unwritten(self, limit: int) -> list[StateEvent]:
        """Return the oldest of the events to be sent again that are in memory alone; they are not sent again."""
        return _removed(self.resend, lambda event: event.row is None, limit)

    def _queue_of(self, event: StateEvent) -> deque[StateEvent]:
        return self._suspects if event.is_suspect else self.resend

    def _put_back(self, events: list[StateEvent]) -> None:
        """Send events again, before the others of their kind."""
        for event in reversed(events):
            self._queue_of(event).appendleft(event)

    def _is_list_behind(self, api: ServerApi) -> bool:
        """Return whether the server's list of events, which has a queue of its own, has to be waited for.

        That queue drops what is too much. What is recorded shows nothing about it: a recorder that writes many events
        at once is much faster. A list that makes no progress holds up no states, nor does one that does not answer.
        """
        while sum(count for _, count in self._unlisted) > MAX_UNLISTED_EVENTS:
            if self._clock() < self._listing_asked_at + MAX_CHECK_INTERVAL:
                return True
            is_listed = False
            with contextlib.suppress(httpx.HTTPError):
                is_listed = self._call(api.is_listed, self._unlisted[0][0])
            now = self._clock()
            if is_listed:
                self._unlisted.popleft()
                self._listed_at = now
            elif now - self._listed_at > LISTING_STALL_TIMEOUT:
                logger.debug("the server's list of events makes no progress; no longer waiting for it")
                self._unlisted.clear()
            else:
                self._listing_asked_at = now
        return False

    def _post(self, api: ServerApi, events: list[StateEvent], *, filled_window: bool) -> None:
        batch = EventBatch(events, self._clock(), filled_window=filled_window)
        self._in_flight.append(batch)
        try:
            self._set_aside_deleted(api, events)
            if not events:
                return
            self._call(api.send, [event.body for event in events])
        except RejectedError as error:
            self._in_flight.remove(batch)
            self._bisect(api, events, error)
        except BaseException:
            self._in_flight.remove(batch)
            self._put_back(events)
            raise
        else:
            if len(self._in_flight) == 1 and not self._stands_still:
                self.progress_at = self._clock()  # Until now there was nothing that the server could have recorded.
            self._last_accepted = events[-1]
            if not self._unlisted:
                self._listed_at = self._clock()
            self._unlisted.append((events[-1], len(events)))

    def _set_aside_deleted(self, api: ServerApi, events: list[StateEvent]) -> None:
        """Drop the events of deleted flow runs, if one of `events`, which are in flight, is of another one.

        Asked before each request: the server's recorder fails for all that it gets together with one of these, plain
        tasks of others included, and tries it again and again.
        """
        ids = {event.flow_run_id for event in events} - {""}
        if unknown := ids - self._deleted:
            for flow_run_id in self._call(api.deleted_flow_runs, list(unknown)):
                self._deleted.add(flow_run_id)
                logger.warning(
                    "flow run %s was deleted, or is not on this server: no states of its task runs are sent",
                    flow_run_id,
                )
        if ids.isdisjoint(self._deleted):
            return
        if self._last_accepted is not None and self._last_accepted.flow_run_id in self._deleted:
            self._last_accepted = None
        for each in (*(batch.events for batch in self._in_flight), *(events for events, _ in self._arrived)):
            each[:] = list(self.without_deleted(each))
        self._in_flight = [batch for batch in self._in_flight if batch.events]

    def _bisect(self, api: ServerApi, events: list[StateEvent], error: RejectedError) -> None:
        """Send the events in halves, so that one that the server cannot take does not hold up the others.

        Raises:
            httpx.NetworkError: the server rejects all events, which is trouble of its own or of a proxy's.
        """
        if len(events) > 1:
            middle = len(events) // 2
            self._put_back(events[middle:])
            self._post(api, events[:middle], filled_window=False)
            return
        (event,) = events
        queue = self._queue_of(event)
        queue.append(event)  # Behind the others, which show whether the server rejects this one only.
        if not self._accepts_earlier(api, event.fault_count + 1):
            raise httpx.NetworkError(f"the server accepts no events: {error}")
        event.fault_count += 1
        if event.fault_count >= MAX_FAULTS:
            queue.remove(event)
            self._give_up(event, error)

    def _accepts_earlier(self, api: ServerApi, times: int) -> bool:
        """Return whether the server accepts an earlier event again, so many times in a row.

        Another number of times for each fault, since a load balancer may alternate between servers of which one is in
        trouble. Until the server has accepted an event, it is not known to accept any.
        """
        if self._last_accepted is not None:
            with contextlib.suppress(RejectedError):
                for _ in range(times):
                    self._call(api.send, [self._last_accepted.body])
                return True
        return False

    # --- what has become of the events ---

    def _check(self, api: ServerApi) -> None:
        self._checked_at = self._clock()
        self._find_arrived(api)
        for group in list(self._arrived):
            events, look_up_at = group
            if self._checked_at >= look_up_at:
                known = self._call(api.recorded, list({event.task_run_id for event in events}))
                lost = [event for event in events if not _is_recorded(event, known)]
            elif self._all_counted(api, events):
                known, lost = {}, []
            else:
                continue
            self._arrived.remove(group)
            done = set(events).difference(lost)
            self.recorded += sum(event.is_final and not event.is_inherited for event in done)
            self.outbox.over += [event.row for event in done if event.row is not None]
            if lost:
                self._resend(lost, known)

    def _find_arrived(self, api: ServerApi) -> None:
        if not (in_flight := self._in_flight):
            return
        known = self._call(api.recorded, list({batch.events[-1].task_run_id for batch in in_flight}))
        recorded = [n for n, batch in enumerate(in_flight, 1) if _is_recorded(batch.events[-1], known)]
        now = self._clock()
        if recorded:
            arrived, self._in_flight = in_flight[: recorded[-1]], in_flight[recorded[-1] :]
            since = max(self.progress_at, arrived[0].sent_at)
            self._window.on_recorded(arrived, since, now, is_dry=not self._in_flight)
            # A server that stood still has lost intermediate states too, which a count does not show.
            look_up_at = -math.inf if arrived[0].sent_at < self._probed_at else now + SHORT_COUNT_TIMEOUT
            self._arrived.append(([event for batch in arrived for event in batch.events], look_up_at))
            self.progress_at, self._stands_still = now, False
        elif now - max(self.progress_at, self._probed_at) > RECORDING_STALL_TIMEOUT:
            self._probed_at = now
            self._probe(api, in_flight[-1], known)

    def _probe(self, api: ServerApi, batch: EventBatch, known: dict[str, Recorded]) -> None:
        """Send an event of a batch once more; with a newer time where the server has a newer state of its task run.

        Another one each time, since it may be the one that cannot be recorded. Where none was, and others have to wait
        for that, they can go; it is a loss only if the server has recorded something since that was last so.
        """
        events = batch.events
        if batch.probes >= len(events) and self._isolates:
            self._in_flight.remove(batch)
            if self._stands_still:
                for event in events:
                    event.send_count = max(event.send_count, CHANCE_SENDS + 1)
                self._suspects.extend(events)  # Behind the others, which may show that it records.
            else:
                self._resend(events, {})
            self._stands_still = True
            return
        if batch.probes:
            events.insert(0, events.pop())
        batch.probes += 1
        event = events[-1]
        self._set_aside_deleted(api, [event])
        if event.flow_run_id in self._deleted:
            return
        at = self._resend_time(event, known.get(event.task_run_id))
        if at != event.at:
            event = events[-1] = event.again(at)
            self.outbox.back_up([event] if event.row is not None else [])
        with contextlib.suppress(RejectedError):
            self._call(api.send, [event.body])
            self.resent += event.is_final

    def _all_counted(self, api: ServerApi, events: list[StateEvent]) -> bool:
        by_name: defaultdict[str, set[str]] = defaultdict(set)
        for event in (event for event in events if event.is_final):
            by_name[event.name].add(event.task_run_id)
        return all(self._call(api.count, list(ids), name) == len(ids) for name, ids in by_name.items())

    def _resend(self, lost: list[StateEvent], known: dict[str, Recorded]) -> None:
        logger.info("the server has lost %d states; sending them again", len(lost))
        events: list[StateEvent] = []
        for event in lost:
            if event.send_count >= MAX_SENDS:
                self._give_up(event, f"the server has lost it {MAX_SENDS} times")
            else:
                self.resent += event.is_final
                events.append(event.again(self._resend_time(event, known.get(event.task_run_id))))
        self.outbox.back_up(event for event in events if event.row is not None)  # As they are now.
        self._put_back(events)

    def _resend_time(self, event: StateEvent, recorded: Recorded | None) -> float:
        """Return the event's own time, or a newer one where the server has a newer state and would ignore this one."""
        if recorded is None or recorded.at < event.at or recorded.covers(event):
            return event.at
        return max(self._wall(), recorded.at + CLOCK_RESOLUTION_SECONDS)

    # --- events that are over ---

    def _give_up(self, event: StateEvent, reason: object) -> None:
        """Do not send a state again, nor keep it: each later mirror would fail with it too."""
        logger.error("the server does not accept state %s of task run %s: %s", event.name, event.task_run_id, reason)
        self._set_aside(event)

    def _set_aside(self, event: StateEvent) -> None:
        """Count a state as one that is never sent."""
        if event.is_final and not event.is_inherited:
            if len(self.given_up) < MAX_IN_MEMORY:
                self.given_up.append(event.job_id)
            else:
                self.outbox.lost += 1
        self.outbox.over += [] if event.row is None else [event.row]


def _is_recorded(event: StateEvent, known: dict[str, Recorded]) -> bool:
    recorded = known.get(event.task_run_id)
    return recorded is not None and recorded.covers(event)


def _removed(events: deque[StateEvent], fits: Callable[[StateEvent], bool], limit: int) -> list[StateEvent]:
    """Remove the first events that fit, at most `limit`, and return them."""
    taken = list(itertools.islice(filter(fits, events), limit))
    for event in taken:
        events.remove(event)
    return taken
