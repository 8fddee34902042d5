"""TaskRunMirror shows jobs, and the tasks of engines, as task runs in Prefect, with every state of them.

    executor ──transition──► mirror ──event──► sender ──paced──► server
                                                  │ what cannot be sent now
                                                  └──► outbox ──► later, or the next mirror

The mirror takes no time of the executor's: a thread of its own sends events as fast as the server records them. While
it is behind, it skips intermediate states, depending on `history`. The final state, run count and
times of each job always reach the server. If they truly cannot, the report names how many jobs are missing, and which.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from executor_adapter.error_codes import retry_after_of
from executor_adapter.job import Job, Transition
from executor_adapter.prefect.mirror.events import (
    Change,
    FlowRunFacts,
    announce_flow_run,
    current_flow_run_id,
    flow_run_facts,
)
from executor_adapter.prefect.mirror.outbox import MAX_TRANSACTION_EVENTS, OutboxFile
from executor_adapter.prefect.mirror.sender import MAX_IN_MEMORY, EventSender
from executor_adapter.prefect.mirror.server import (
    ServerApi,
    read_flow_run_facts,
    server_address,
    server_name,
    trouble_of,
    warn_of_untested_prefect,
)
from executor_adapter.prefect.mirror.timeline import (
    History,
    JobHistory,
    Step,
    TaskRunHistory,
    UnsentChanges,
    step_of,
    task_run_id,
)

logger = logging.getLogger("executor_adapter.prefect")

MAX_NAMED_IDS = 10
"""Job ids of each kind that the report's text names."""

NOTICE_INTERVAL = 5.0
"""Seconds until a caller who waits for the server is told how far it is, first and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorReport:
    """Describes how far the server has recorded the mirrored jobs. The tuples hold job ids."""

    jobs: int
    """Jobs that were mirrored."""
    recorded: int
    """Jobs whose true final state the server is known to have."""
    resent: int = 0
    """Final states that were sent again, because the server had lost them."""
    omitted: int = 0
    """Intermediate states that were not sent, because newer ones of their jobs waited too: see `history`."""
    kept: tuple[str, ...] = ()
    """Jobs whose final state is in the outbox on disk: the next mirror for this server sends it."""
    missing: tuple[str, ...] = ()
    """Jobs whose final state the server does not have, and will not get."""
    dropped: int = 0
    """Further such jobs, without their ids: neither the server nor the disk took the states of a hundred thousand."""
    unfinished: tuple[str, ...] = ()
    """Jobs that have not finished."""

    @property
    def complete(self) -> bool:
        """Whether the server has the true final state of every job."""
        return not (self.kept or self.missing or self.dropped or self.unfinished) and self.recorded >= self.jobs

    def log(self) -> None:
        """Log a warning if final states are not recorded, and a note if intermediate states were omitted."""
        if not self.complete:
            logger.warning("not all jobs are recorded: %s", self)
        elif self.omitted:
            logger.info("%s: use history='full' to send them all", self)

    def __str__(self) -> str:
        parts = [f"the server has the final state of {self.recorded} of {self.jobs} jobs"]
        kinds = {"kept on disk for the next start": self.kept, "missing": self.missing, "unfinished": self.unfinished}
        for what, ids in kinds.items():
            if ids:
                more = ", ..." if len(ids) > MAX_NAMED_IDS else ""
                parts.append(f"{len(ids)} {what}: {', '.join(ids[:MAX_NAMED_IDS])}{more}")
        if self.dropped:
            parts.append(f"{self.dropped} dropped")
        if self.omitted:
            parts.append(f"{self.omitted} intermediate states omitted")
        return "; ".join(parts)


def log_wait(found: MirrorReport, limit: str, *, is_away: bool) -> None:
    """Say how far the server is: in the log of the flow run around the caller, unless the server is away."""
    over = "" if found.unfinished else "all jobs are over; "
    away = ", which does not answer" if is_away else ""
    try:
        log = get_logger("executor_adapter") if is_away else get_run_logger()
    except MissingContextError:
        log = get_logger("executor_adapter")
    text = "%swaiting for the Prefect server%s: %s of %s recorded (%s)"
    log.info(text, over, away, f"{found.recorded:,}", f"{found.jobs:,}", limit)


GATHER_SECONDS = 0.05
"""Time for which changes are gathered, so that one request carries many."""

ROUND_INTERVAL = 0.1
"""Seconds between two rounds of sending, while events are unrecorded."""

RECONNECT_INTERVAL = 1.0
"""Seconds between two attempts to reach a server that does not answer."""

MAX_RETRY_AFTER = 60.0
"""Seconds between them at most, where the server asks for a longer time."""

INHERITED_SECONDS = 5.0
"""Time for inherited events after the last event of this mirror is recorded; the rest stays in the file."""

THREAD_EXIT_TIMEOUT = 0.5
"""Seconds for the thread to end. The interpreter may be about to exit, and cannot stop a thread in a request."""

STORE_INTERVAL = 1.0
"""Seconds after which a final state that the server has not recorded is in the outbox's file too."""


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
        self._closed = threading.Event()
        self.kept: tuple[str, ...] = ()
        """The jobs whose final states were in the outbox's file at the end."""
        self.missing: tuple[str, ...] = ()
        """The jobs whose final states could not be written to it at the end."""
        self._unsent = unsent
        self._given_file = file
        self._lock = threading.Lock()
        """Held by the thread except while it waits; guards the sender and the unsent changes."""
        self.sender = EventSender(lambda limit: unsent.next_events(limit, self._flow), self._lock)
        """Sends the events; any thread may read its totals."""
        self.outbox = self.sender.outbox
        self._wake = threading.Event()
        self._round_done = threading.Event()
        self._had_own_events_at = 0.0
        self.troubles: set[int | str] = set()
        """What has kept the server from answering since it last did: each is logged once."""
        self.thread: threading.Thread | None = None
        """Sends, once there is something to send."""
        self._start_lock = threading.Lock()
        self.adopt_flow_run()
        _living.add(self)

    def adopt_flow_run(self) -> None:
        """Relate the events to the flow run around the caller. Only before the first event."""
        self._flow: FlowRunFacts = flow_run_facts()
        self._context = contextvars.copy_context()
        self.outbox.open(self._given_file or OutboxFile(server_name()))
        announce_flow_run()  # Before the server can know of any task run.

    # --- called by any thread ---

    @property
    def is_closed(self) -> bool:
        """Whether it sends nothing more."""
        return self._closed.is_set()

    def wake(self) -> None:
        """Send the unsent changes, and start the thread if it has not started."""
        if not self._wake.is_set():
            self.start()

    def start(self) -> None:
        """Start the thread, unless it has started or is closed."""
        with self._start_lock:
            if self.thread is None and not self.is_closed:
                warn_of_untested_prefect()
                run, self._had_own_events_at = self._context.copy().run, time.monotonic()
                thread = threading.Thread(target=run, args=(self._run,), name="prefect-mirror", daemon=True)
                # A thread of its own: the other one may be waiting for an answer of the server.
                threading.Thread(target=self._store_on, name="prefect-outbox", daemon=True).start()
                thread.start()
                self.thread = thread
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

    def is_done(self) -> bool:
        """Whether the server has recorded all events of this mirror, and had INHERITED_SECONDS for those of others."""
        with self._lock:
            is_late = self._unsent.is_hurried or time.monotonic() - self._had_own_events_at > INHERITED_SECONDS
            return self.is_closed or not self._is_busy or (is_late and not self._has_own_events)

    def close(self) -> bool:
        """Leave the final states that the server may not have in the file, and end; False if it was closed before."""
        with self._lock:
            closes = not self.is_closed
            if closes:
                self._closed.set()
                finals = itertools.chain(self.sender.unrecorded(), self._unsent.final_events(self._flow))
                self.kept, self.missing = self.outbox.close(self.sender.without_deleted(finals))
        self._wake.set()
        return closes

    def join(self) -> None:
        """Wait for the thread's end, but not for one that hangs in a request."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(THREAD_EXIT_TIMEOUT)

    def leave_to_parent(self) -> None:
        """Be closed in a forked child, which has neither the thread nor a right to what its parent has in the file."""
        self._lock, self._start_lock = threading.Lock(), threading.Lock()  # The parent's threads may hold the others.
        self._closed, self._wake = threading.Event(), threading.Event()
        self._closed.set()
        self.outbox.file.drop_lock()

    # --- the thread itself ---

    @property
    def _has_own_events(self) -> bool:
        return bool(self._unsent or self.outbox.stored) or self.sender.has_own_events

    @property
    def _is_busy(self) -> bool:
        return (self.outbox.is_heir and not self._unsent.is_hurried) or self._has_own_events or not self.sender.is_idle

    def _run(self) -> None:
        while not self.is_closed:
            try:
                with ServerApi.connected() as api:
                    self._send_until_closed(api)
            except httpx.HTTPError as error:
                self._on_unreachable(error)
            except Exception:
                logger.exception("cannot send job states to the Prefect server; retrying")
            self._closed.wait(RECONNECT_INTERVAL)

    def _send_until_closed(self, api: ServerApi) -> None:
        self._flow = read_flow_run_facts(self._flow)
        while not self.is_closed:
            self._wake.clear()
            with self._lock:
                self._send_once(api)
            self._round_done.set()
            self._wait_for_work()

    def _send_once(self, api: ServerApi) -> None:
        if self.is_closed:
            return
        self._unsent.take_in()
        if self._has_own_events:
            self._had_own_events_at = time.monotonic()
        if self.sender.run_once(api) and self.troubles:
            logger.info("the Prefect server at %s answers again", server_address())
            self.troubles.clear()
        self._unsent.stored = self.outbox.stored

    def _wait_for_work(self) -> None:
        """Wait until there is something to do, and then a little longer for more, unless it is in a hurry."""
        pause = min(ROUND_INTERVAL, max(0.0, self.sender.seconds_until_check())) if self._is_busy else None
        if self._wake.wait(pause) and not self._unsent.is_hurried:
            time.sleep(GATHER_SECONDS)

    def _on_unreachable(self, error: httpx.HTTPError) -> None:
        trouble = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        if trouble not in self.troubles:
            self.troubles.add(trouble)
            where = server_address()
            logger.warning("cannot send job states to the Prefect server at %s; retrying: %s", where, trouble_of(error))
        # The rest of the time that the server asks for: RECONNECT_INTERVAL follows in any case.
        self._closed.wait(min(retry_after_of(error) or 0.0, MAX_RETRY_AFTER) - RECONNECT_INTERVAL)

    def _store_on(self) -> None:
        """Write the final states of this mirror that are not recorded to the file, since the process may be killed.

        Those that are in flight stay in memory too. The lock is released now and then, since others wait for it.
        """
        while not self._closed.wait(STORE_INTERVAL):
            try:
                with self._lock:
                    self.outbox.delete_ended()
                    self.outbox.back_up(event for event in self.sender.unrecorded() if event.row is None)
                while self._store_some():
                    pass
            except Exception:
                logger.exception("cannot write job states to %s; retrying", self.outbox.file.path)

    def _store_some(self) -> bool:
        """Move the oldest finished task runs from memory to the file; return whether there may be more."""
        with self._lock:
            taken = [] if self.is_closed else self._unsent.take_finished(self._flow, MAX_TRANSACTION_EVENTS)
            events = list(self.sender.without_deleted(taken))
            if not self.outbox.store(events):
                self.sender.resend.extend(events)
                self._drop()
                return False
            return len(taken) >= MAX_TRANSACTION_EVENTS

    def _drop(self) -> None:
        """Drop the oldest final states of those that can be neither sent nor written."""
        excess = len(self.sender.resend) + len(self._unsent.finished()) - MAX_IN_MEMORY
        if excess > 0:
            oldest = self.sender.take_unwritten(excess)
            oldest += self._unsent.take_finished(self._flow, excess - len(oldest))
            dropped = sum(event.is_final for event in oldest)
            self.outbox.lost += dropped
            logger.error("dropped %d final states: neither the Prefect server nor the disk takes them", dropped)


STALL_TIMEOUT = 90.0
"""Seconds without any progress of the server after which the unrecorded states are given up, and left in the outbox."""

HURRIED_CLOSE_SECONDS = 4.0
"""Time for the final states when a mirror is closed in a hurry, from the moment the hurry began.

A signal, a cancelled flow run or an exception leaves only seconds: then only final states are sent, and what the server
has not recorded in time is left in the outbox.
"""

MIN_HURRIED_CLOSE_SECONDS = 1.5
"""Minimum time for the final states, however long the jobs took to end."""


def remaining_close_seconds(hurried_since: float) -> float:
    """Return the seconds left for the server, where the hurry began at the monotonic time `hurried_since`."""
    return max(MIN_HURRIED_CLOSE_SECONDS, HURRIED_CLOSE_SECONDS - (time.monotonic() - hurried_since))


class TaskRunMirror:
    """Shows what is added to it as Prefect task runs; see the module. The options are those of PrefectMirror."""

    def __init__(
        self, *, history: History = "auto", stall_timeout: float = STALL_TIMEOUT, outbox: OutboxFile | None = None
    ) -> None:
        self.flow_run_id = current_flow_run_id()
        self._stall_timeout = stall_timeout
        self._unsent = UnsentChanges(history)
        self._thread = SenderThread(self._unsent, outbox)
        self._histories: dict[str, TaskRunHistory[Any]] = {}
        """The histories of unfinished jobs and task runs of engines, by job id."""
        self._jobs = 0
        self._jobs_lock = threading.Lock()
        self._deadline: float | None = None

    def join_flow_run(self) -> None:
        """Make the jobs task runs of the flow run around the caller, wherever the mirror was made.

        Raises:
            RuntimeError: it has mirrored jobs of another flow run, or is closed.
        """
        if self._thread.is_closed or (self._jobs and self.flow_run_id != current_flow_run_id()):
            raise RuntimeError("this mirror is closed, or mirrors another flow run's jobs: make one for each flow run")
        if not self._jobs:
            self.flow_run_id = current_flow_run_id()
            self._thread.adopt_flow_run()

    # --- jobs and their transitions ---

    def add_job(self, job: Job) -> JobHistory:
        """Mirror a job that is about to be submitted to an executor whose other jobs are not mirrored.

        Its transitions are passed to `enqueue`, or their steps to `enqueue_step`.
        """
        history = JobHistory(job, task_run_id(self.flow_run_id, job))
        self.add(history)
        return history

    def add(self, history: TaskRunHistory[Any]) -> None:
        """Mirror a task run whose steps are passed to `enqueue_step`. Any thread may call this."""
        with self._jobs_lock:
            self._jobs += 1
        self._histories[history.job_id] = history

    def remove_job(self, job: Job) -> None:
        """Do not mirror a job, because it was not submitted."""
        if self._histories.pop(job.job_id, None) is not None:
            with self._jobs_lock:
                self._jobs -= 1

    def enqueue(self, transition: Transition) -> None:
        """Queue a transition to be sent, if its job was added."""
        history = self._histories.get(transition.job.job_id)
        if history is not None:
            self.enqueue_step(history, step_of(transition))

    def enqueue_step(self, history: TaskRunHistory[Any], step: Step | Change) -> bool:
        """Queue a step of a task run that was added; False if the mirror is closed. Any thread may call this."""
        if self._thread.is_closed:
            return False
        if step.is_final:
            self._histories.pop(history.job_id, None)
        self._unsent.append(history, step)
        self._thread.wake()
        return not self._thread.is_closed  # It may have come too late for what the end writes to the outbox.

    # --- the end ---

    def drain(self, timeout: float | None = None, *, check: Callable[[], object] | None = None) -> MirrorReport:
        """Wait until the server has recorded all states so far.

        It waits for at most `timeout` seconds, or without one until the server has made no progress for
        `stall_timeout`. Events that earlier processes have left get a few seconds more. A notice in the log says every
        few seconds how far the server is. `check()` is called ten times a second meanwhile; an exception of it ends the
        wait.
        """
        started_at = time.monotonic()
        ends_at = None if timeout is None else started_at + timeout
        given_up = f"given up after {self._stall_timeout:g} s without progress"
        limit = given_up if timeout is None else f"for at most {timeout:g} s"
        notice_at = started_at + NOTICE_INTERVAL
        self._thread.start()
        while not self._thread.is_done() and not self._is_given_up(started_at, ends_at):
            if check is not None:
                check()
            if time.monotonic() >= notice_at:
                log_wait(self.report(), limit, is_away=bool(self._thread.troubles))
                notice_at = time.monotonic() + NOTICE_INTERVAL
            self._thread.wait_for_round()
        return self.report()

    def send_inherited(self, timeout: float | None = None) -> None:
        """Send what earlier processes have left in the outbox, if they have left something; see `drain`."""
        if self._thread.outbox.is_heir:
            self.drain(timeout)

    def hurry(self) -> None:
        """Send only final states from now on, at once: the process is about to end."""
        self._thread.hurry()

    def close(self, timeout: float | None = None) -> MirrorReport:
        """Drain, leave the final states that the server did not get in the outbox, and end; see PrefectMirror."""
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
            self.hurry()
        try:
            if not self._thread.is_closed and (self._jobs or self._thread.thread):
                self.drain()
        finally:
            if self._thread.close():
                self.report().log()
            self._thread.join()
        return self.report()

    def report(self) -> MirrorReport:
        """Return how far the server's record goes by now."""
        sender = self._thread.sender
        return MirrorReport(
            jobs=self._jobs,
            recorded=sender.recorded,
            resent=sender.resent,
            omitted=self._unsent.omitted,
            kept=self._thread.kept,
            missing=(*self._thread.missing, *sender.given_up),
            dropped=self._thread.outbox.lost,
            unfinished=tuple(self._histories),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(None if kind is None else HURRIED_CLOSE_SECONDS)

    def _is_given_up(self, started_at: float, ends_at: float | None) -> bool:
        since = max(started_at, self._thread.sender.progress_at)
        limits = [limit for limit in (ends_at, self._deadline) if limit is not None] or [since + self._stall_timeout]
        return time.monotonic() >= min(limits)
