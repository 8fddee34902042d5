"""The thread that sends a mirror's events, from its first state change until the mirror is closed."""

from __future__ import annotations

import contextvars
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterator

import httpx

from executor_adapter.prefect.mirror.event_sender import EventSender
from executor_adapter.prefect.mirror.flow_run_facts import announce_flow_run, flow_run_facts, read_flow_run_facts
from executor_adapter.prefect.mirror.own_files import OwnFiles
from executor_adapter.prefect.mirror.pacing import MAX_BATCH_SIZE
from executor_adapter.prefect.mirror.server_api import ServerApi, server_address, server_name, trouble_of
from executor_adapter.prefect.mirror.spool import MAX_FILE_EVENTS, Spool, SpoolFile
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent
from executor_adapter.prefect.mirror.unsent import UnsentChanges

logger = logging.getLogger("executor_adapter.prefect")

GATHER_SECONDS = 0.05
"""Time for which changes are gathered, so that one request carries many."""

ROUND_INTERVAL = 0.1
"""Seconds between two rounds of sending, while events are unrecorded."""

RECONNECT_INTERVAL = 1.0
"""Seconds between two attempts to reach a server that does not answer."""

SPOOL_SECONDS = 5.0
"""Time for spooled events after the last event of this process is recorded; what is left stays on disk."""

THREAD_EXIT_TIMEOUT = 0.5
"""Seconds for the thread to end. The interpreter may be about to exit, and cannot stop a thread in a request."""


MAX_FINISHED = 20_000
"""Finished task runs that wait in memory for a server that is slow, about 20 MB; older ones wait on disk."""

MAX_FINISHED_WITHOUT_DISK = 100_000
"""The same where they cannot be written to disk; older ones are dropped, and reported as missing."""

MAX_FILES_A_ROUND = 20
"""Files that are written at once, so that a caller who closes the mirror does not wait for more."""


class SenderThread:
    """Sends unsent changes, then spooled events, to the server of the Prefect settings in force.

    Without a `spool` it is the one for that server. Make it, or call `adopt_flow_run`, in the context whose Prefect
    settings and flow run it should use.
    """

    def __init__(self, unsent: UnsentChanges, spool: Spool | None) -> None:
        self.is_closed = False
        self.gathers = True
        """Whether it waits a little for further changes before it sends some."""
        self.spooled: tuple[str, ...] = ()
        """The jobs whose final states were written to the spool at the end."""
        self.missing: tuple[str, ...] = ()
        """The jobs whose final states could not be written to the spool at the end."""
        self._dropped = 0
        self._unsent = unsent
        self._given_spool = spool
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
        self._start_lock = threading.Lock()
        self.adopt_flow_run()

    def adopt_flow_run(self) -> None:
        """Relate the events to the flow run around the caller. Only before the first event."""
        self._flow: FlowRunFacts = flow_run_facts()
        self._context = contextvars.copy_context()
        self._spool = self._given_spool or Spool(server_name())
        self._own_files = OwnFiles(self._spool)
        self._is_spool_sent = self._spool.is_empty
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

    def start(self) -> None:
        """Start the thread, unless it has started or is closed."""
        with self._start_lock:
            if self._thread is None and not self.is_closed:
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
        return self._dropped + self._own_files.lost

    @property
    def is_server_away(self) -> bool:
        """Whether the server could not be used since it answered last."""
        return bool(self._troubles)

    def is_done(self) -> bool:
        """Whether the server has recorded all events of this process, and had SPOOL_SECONDS for spooled ones."""
        with self._lock:
            if self.is_closed or not self._is_busy:
                return True
            is_late = self._unsent.is_hurried or time.monotonic() - self._had_own_events_at > SPOOL_SECONDS
            return is_late and not self._has_own_events

    def unrecorded(self) -> tuple[str, ...]:
        """Return the finished jobs whose final state the server is not known to have."""
        with self._lock:
            in_flight = (event.job_id for event in self.sender.unrecorded() if event.spool_file is None)
            unsent = (history.job_id for history in self._unsent.finished())
            return (*in_flight, *self._own_files.job_ids(), *unsent)

    def close(self) -> bool:
        """Write the final states that the server may not have to the spool, and end; False if it was closed before."""
        with self._lock:
            closes = not self.is_closed
            if closes:
                self.is_closed = True
                finals = itertools.chain(self.sender.unrecorded(), self._unsent.final_events(self._flow))
                kept, self.missing = self._spool.keep(self.sender.without_deleted(finals))
                self.spooled = (*self._own_files.job_ids(), *kept)
                self._own_files.close()
        self._wake.set()
        return closes

    def join(self) -> None:
        """Wait for the thread's end, but not for one that hangs in a request."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(THREAD_EXIT_TIMEOUT)

    # --- the thread itself ---

    @property
    def _has_own_events(self) -> bool:
        return bool(self._unsent or self._own_files) or self.sender.has_own_events

    @property
    def _is_busy(self) -> bool:
        sends_spool = not self._is_spool_sent and not self._unsent.is_hurried
        return bool(self._unsent or self._own_files) or not self.sender.is_idle or sends_spool

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
        spool_files = self._spool.claim()
        while not self.is_closed:
            self._wake.clear()
            try:
                with self._lock:
                    self._send_once(api, spool_files)
                self._round_done.set()
            except httpx.HTTPError as error:
                self._on_unreachable(error)
                self._wake.wait(RECONNECT_INTERVAL)
            self._wait_for_work()

    def _send_once(self, api: ServerApi, spool_files: Iterator[SpoolFile]) -> None:
        self._unsent.take_in()
        if self._unsent.finished_count > MAX_FINISHED:
            if self._own_files.has_failed:
                self._drop()
            else:
                self._store(self._unsent.finished_count - MAX_FINISHED)
        while self._own_files and len(self.sender.outbox.resend) < MAX_BATCH_SIZE:
            self.sender.outbox.resend.extend(self._own_files.take())
        if self._has_own_events:
            self._had_own_events_at = time.monotonic()
        if self.sender.run_once(api) and self._troubles:
            logger.info("the Prefect server at %s answers again", server_address())
            self._troubles.clear()
        if not (self._is_spool_sent or self._unsent.is_hurried or self.sender.outbox.spooled):
            self._send_next_file(api, spool_files)

    def _send_next_file(self, api: ServerApi, spool_files: Iterator[SpoolFile]) -> None:
        file = next(spool_files, None)
        self._is_spool_sent = file is None
        if file is not None:
            events = file.events()
            logger.info("sending %d final states that an earlier process spooled", len(events))
            self.sender.send_spooled(api, events)

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
        """Write the final states of this process to disk, because the server is away: the process may be killed."""
        with self._lock:
            if self.is_closed:
                return
            events = self.sender.unrecorded()
            events = [event for event in events if event.spool_file is None and event.backup is None]
            self._unsent.take_in()
            if self._own_files.back_up(events):
                self._store(self._unsent.finished_count)
            else:
                self._drop()

    def _store(self, task_runs: int) -> None:
        """Move the oldest finished task runs from memory to disk: that many, in whole files, or as many as a round."""
        for _ in range(min(MAX_FILES_A_ROUND, math.ceil(task_runs / MAX_FILE_EVENTS))):
            events = list(self.sender.without_deleted(self._unsent.take_finished(self._flow, MAX_FILE_EVENTS)))
            if events and not self._own_files.store(events):
                self.sender.outbox.put_back(events)
                self._drop()
                break
        self._unsent.release_sent()

    def _drop(self) -> None:
        excess = self._unsent.finished_count - MAX_FINISHED_WITHOUT_DISK
        if excess > 0:
            dropped = sum(event.is_final for event in self._unsent.take_finished(self._flow, excess))
            self._dropped += dropped
            logger.error("dropped %d final states: neither the Prefect server nor the disk takes them", dropped)
