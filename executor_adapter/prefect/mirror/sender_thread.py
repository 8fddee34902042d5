"""The thread that sends a mirror's events, from its first state change until the mirror is closed."""

from __future__ import annotations

import contextvars
import itertools
import logging
import os
import threading
import time
import weakref

import httpx

from executor_adapter.prefect.mirror.flow_run_facts import announce_flow_run, flow_run_facts, read_flow_run_facts
from executor_adapter.prefect.mirror.outbox import MAX_TRANSACTION_EVENTS, OutboxFile
from executor_adapter.prefect.mirror.sender import EventSender
from executor_adapter.prefect.mirror.server_api import (
    ServerApi,
    server_address,
    server_name,
    trouble_of,
    warn_of_untested_prefect,
)
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent
from executor_adapter.prefect.mirror.timeline import UnsentChanges

logger = logging.getLogger("executor_adapter.prefect")

GATHER_SECONDS = 0.05
"""Time for which changes are gathered, so that one request carries many."""

ROUND_INTERVAL = 0.1
"""Seconds between two rounds of sending, while events are unrecorded."""

RECONNECT_INTERVAL = 1.0
"""Seconds between two attempts to reach a server that does not answer."""

INHERITED_SECONDS = 5.0
"""Time for inherited events after the last event of this mirror is recorded; the rest stays in the file."""

MAX_TAKEN_OVER = 200
"""Inherited events that are taken over at once: as many as a slow server records in INHERITED_SECONDS."""

THREAD_EXIT_TIMEOUT = 0.5
"""Seconds for the thread to end. The interpreter may be about to exit, and cannot stop a thread in a request."""

MAX_IN_MEMORY = 20_000
"""Finished task runs that wait in memory for a server, about 20 MB; older ones wait in the file."""

MAX_WITHOUT_FILE = 100_000
"""The same where the file cannot be written; older ones are dropped, and counted."""


_living: weakref.WeakSet[SenderThread] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for each in list(_living):
        each.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)


class SenderThread:
    """Sends unsent changes, then inherited events, to the server of the Prefect settings in force.

    Without a `file` it is the one below PREFECT_HOME. Make it, or call `adopt_flow_run`, in the context whose Prefect
    settings and flow run it should use.
    """

    def __init__(self, unsent: UnsentChanges, file: OutboxFile | None) -> None:
        self.is_closed = False
        self.gathers = True
        """Whether it waits a little for further changes before it sends some."""
        self.kept: tuple[str, ...] = ()
        """The jobs whose final states were in the outbox's file at the end."""
        self.missing: tuple[str, ...] = ()
        """The jobs whose final states could not be written to it at the end."""
        self._dropped = 0
        self._unsent = unsent
        self._given_file = file
        self._lock = threading.Lock()
        """Held by the thread except while it waits; guards the sender and the unsent changes."""
        self.sender = EventSender(self._next_events, self._lock)
        """Sends the events; any thread may read its totals."""
        self._wake = threading.Event()
        self._round_done = threading.Event()
        self._had_own_events_at = 0.0
        self._troubles: set[int | str] = set()
        """What has kept the server from answering since it last did: each is logged once."""
        self._thread: threading.Thread | None = None
        self._is_storing = False
        """Whether a thread of its own stores changes, because this one waits for an answer of the server."""
        self._start_lock = threading.Lock()
        self.adopt_flow_run()
        _living.add(self)

    def adopt_flow_run(self) -> None:
        """Relate the events to the flow run around the caller. Only before the first event."""
        self._flow: FlowRunFacts = flow_run_facts()
        self._context = contextvars.copy_context()
        self._outbox = self.sender.outbox
        self._outbox.file = self._given_file or OutboxFile(server_name())
        self.is_heir = self._outbox.has_inheritance()
        """Whether the file may hold events that others have left."""
        announce_flow_run()  # Before the server can know of any task run.

    # --- called by any thread ---

    @property
    def has_started(self) -> bool:
        """Whether there was anything to send."""
        return self._thread is not None

    def wake(self) -> None:
        """Send the unsent changes, and start the thread if it has not started."""
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self.start()
        if self._unsent.inbox_size > MAX_IN_MEMORY and not self._is_storing:
            self._is_storing = True
            threading.Thread(target=self._store_inbox, name="prefect-outbox", daemon=True).start()

    def start(self) -> None:
        """Start the thread, unless it has started or is closed."""
        with self._start_lock:
            if self._thread is None and not self.is_closed:
                warn_of_untested_prefect()
                run, self._had_own_events_at = self._context.copy().run, time.monotonic()
                self._thread = threading.Thread(target=run, args=(self._run,), name="prefect-mirror", daemon=True)
                self._thread.start()
        self._wake.set()

    def hurry(self) -> None:
        """Send final states at once from now on."""
        self._unsent.is_hurried = True
        self.sender.hurry()
        self._wake.set()

    def wait_for_round(self) -> None:
        """Wait until the thread has checked and sent once more, or for ROUND_INTERVAL."""
        self._round_done.wait(ROUND_INTERVAL)
        self._round_done.clear()

    @property
    def dropped(self) -> int:
        """The number of final states that neither the server nor the disk took, or that the disk has lost."""
        return self._dropped + self._outbox.lost

    @property
    def is_server_away(self) -> bool:
        """Whether the server could not be used since it answered last."""
        return bool(self._troubles)

    def is_done(self) -> bool:
        """Whether the server has recorded all events of this mirror, and had INHERITED_SECONDS for those of others."""
        with self._lock:
            if self.is_closed or not self._is_busy:
                return True
            is_late = self._unsent.is_hurried or time.monotonic() - self._had_own_events_at > INHERITED_SECONDS
            return is_late and not self._has_own_events

    def unrecorded(self) -> tuple[str, ...]:
        """Return the finished jobs whose final state the server is not known to have."""
        with self._lock:
            in_flight = (event.job_id for event in self.sender.unrecorded() if not event.is_inherited)
            unsent = (history.job_id for history in self._unsent.finished())
            return (*in_flight, *self._outbox.job_ids(), *unsent)

    def close(self) -> bool:
        """Leave the final states that the server may not have in the file, and end; False if it was closed before."""
        with self._lock:
            closes = not self.is_closed
            if closes:
                self.is_closed = True
                finals = itertools.chain(self.sender.unrecorded(), self._unsent.final_events(self._flow))
                self.kept, self.missing = self._outbox.close(self.sender.without_deleted(finals))
        self._wake.set()
        return closes

    def join(self) -> None:
        """Wait for the thread's end, but not for one that hangs in a request."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(THREAD_EXIT_TIMEOUT)

    def leave_to_parent(self) -> None:
        """Be closed in a forked child, which has neither the thread nor a right to what its parent has in the file."""
        self.is_closed = True
        self._lock, self._start_lock = threading.Lock(), threading.Lock()  # The parent's threads may hold the others.
        self._wake = threading.Event()
        self._outbox.file.leave_to_parent()

    # --- the thread itself ---

    @property
    def _has_own_events(self) -> bool:
        return bool(self._unsent or self._outbox.stored) or self.sender.has_own_events

    @property
    def _is_busy(self) -> bool:
        is_heir = self.is_heir and not self._unsent.is_hurried
        return is_heir or bool(self._unsent or self._outbox.stored) or not self.sender.is_idle

    def _next_events(self, limit: int) -> list[StateEvent]:
        return self._unsent.next_events(limit, self._flow)

    def _run(self) -> None:
        while not self.is_closed:
            try:
                with ServerApi.connected() as api:
                    self._send_until_closed(api)
            except httpx.HTTPError as error:
                self._on_unreachable(error)
            except Exception:
                logger.exception("cannot send job states to the Prefect server; retrying")
                self._save()
            if not self.is_closed:
                time.sleep(RECONNECT_INTERVAL)

    def _send_until_closed(self, api: ServerApi) -> None:
        self._flow = read_flow_run_facts(self._flow)
        while not self.is_closed:
            self._wake.clear()
            self._store(keep=MAX_IN_MEMORY)
            try:
                with self._lock:
                    self._send_once(api)
                self._round_done.set()
            except httpx.HTTPError as error:
                self._on_unreachable(error)
                self._wake.wait(RECONNECT_INTERVAL)
            self._wait_for_work()

    def _send_once(self, api: ServerApi) -> None:
        if self.is_closed:
            return
        self._unsent.take_in()
        if self._has_own_events:
            self._had_own_events_at = time.monotonic()
        if self.sender.run_once(api) and self._troubles:
            logger.info("the Prefect server at %s answers again", server_address())
            self._troubles.clear()
        if self.is_heir and not (self._unsent.is_hurried or self._outbox.inherited or self.is_closed):
            self._send_inherited(api)
        self._outbox.delete_ended()

    def _send_inherited(self, api: ServerApi) -> None:
        events = self._outbox.take_over(MAX_TAKEN_OVER)
        self.is_heir = bool(events)
        if events:
            logger.info("sending %d states that an earlier process has left", len(events))
            self.sender.send_inherited(api, events)

    def _wait_for_work(self) -> None:
        """Wait until there is something to do, and then a little longer for more."""
        pause = min(ROUND_INTERVAL, max(0.0, self.sender.seconds_until_check())) if self._is_busy else None
        if self._wake.wait(pause) and self.gathers:
            time.sleep(GATHER_SECONDS)

    def _on_unreachable(self, error: httpx.HTTPError) -> None:
        trouble = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        if trouble not in self._troubles:
            self._troubles.add(trouble)
            where = server_address()
            logger.warning("cannot send job states to the Prefect server at %s; retrying: %s", where, trouble_of(error))
        self._save()

    def _save(self) -> None:
        """Write the final states of this mirror to the file, because the server is away: the process may be killed."""
        with self._lock:
            if not self.is_closed:
                self._outbox.back_up(event for event in self.sender.unrecorded() if event.row is None)
        self._store(keep=0)

    def _store_inbox(self) -> None:
        self._store(keep=MAX_IN_MEMORY)
        self._is_storing = False

    def _store(self, keep: int) -> None:
        """Move the oldest finished task runs from memory to the file, but for the newest `keep`.

        The lock is released now and then, since a caller who closes the mirror waits for it.
        """
        is_more = True
        while is_more:
            with self._lock:
                is_more = not self.is_closed and self._store_some(keep)

    def _store_some(self, keep: int) -> bool:
        """Return whether there may be more to store."""
        self._unsent.take_in()
        excess = min(self._unsent.finished_count - keep, MAX_TRANSACTION_EVENTS)
        if excess <= 0:
            return False
        events = list(self.sender.without_deleted(self._unsent.take_finished(self._flow, excess)))
        self._unsent.release_sent()
        if not self._outbox.store(events):
            self._outbox.resend.extend(events)
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        """Drop the oldest final states of those that can be neither sent nor written."""
        excess = len(self._outbox.resend) + self._unsent.finished_count - MAX_WITHOUT_FILE
        if excess > 0:
            oldest = self._outbox.take_unwritten(excess)
            oldest += self._unsent.take_finished(self._flow, excess - len(oldest))
            dropped = sum(event.is_final for event in oldest)
            self._dropped += dropped
            logger.error("dropped %d final states: neither the Prefect server nor the disk takes them", dropped)
