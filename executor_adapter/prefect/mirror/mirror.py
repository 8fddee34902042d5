"""PrefectMirror: an executor's jobs as task runs in Prefect, every state of them, none lost.

    executor ──transition──► mirror ──events──► sender ──paced──► server
                                                   │ what cannot be brought in time
                                                   └──► spool ──► the next mirror

Attach it to an executor, and close it at the end:

    with PrefectMirror() as mirror, JobExecutor(observers=[mirror]) as executor:
        executor.submit(...)
    print(mirror.report())

Inside a flow run its jobs are task runs of that flow run, elsewhere task runs of their own. `run_jobs` does all this
for many jobs at once. Jobs that a `job_task` runs are Prefect's engine's to tell of, and left alone.

Telling takes no time of the executor's: a thread of the mirror's sends, at the pace at which the server records
(`pacing`, `sender`). A mirror that is behind leaves out, as `history` says, states that jobs have passed through and
left behind; the true final state, run count and times of a job always reach the server. If they truly cannot, the
report says of how many jobs, and which.
"""

from __future__ import annotations

import contextvars
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import httpx

from executor_adapter.job.model import Job
from executor_adapter.job.status import TERMINAL
from executor_adapter.job.transition import Transition
from executor_adapter.prefect.mirror.engine_history import EngineChange, EngineHistory
from executor_adapter.prefect.mirror.event_sender import EventSender
from executor_adapter.prefect.mirror.flow_run_facts import current_flow_run_id, flow_run_facts, read_flow_run_facts
from executor_adapter.prefect.mirror.job_history import JobHistory, step_of, task_run_id
from executor_adapter.prefect.mirror.report import MirrorReport
from executor_adapter.prefect.mirror.server_api import ServerApi, server_name
from executor_adapter.prefect.mirror.spool import Spool, SpoolFile
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent
from executor_adapter.prefect.mirror.timeouts import HURRIED_CLOSE_SECONDS
from executor_adapter.prefect.mirror.unsent import History, UnsentChanges

logger = logging.getLogger("executor_adapter.prefect")

LINGER = 0.05
"""Seconds for which changes are gathered, so that one request carries many."""

TURN_SECONDS = 0.1
"""Between two turns of a sender that is not done."""

AWAY_SECONDS = 1.0
"""Between two attempts to reach a server that is away."""

STALL_TIMEOUT = 90.0
"""Seconds for which a server may show no progress at all before what it does not have is given up, and spooled."""

SPOOL_SECONDS = 5.0
"""What the server gets for what earlier processes kept, once it has all of one's own: the rest stays on disk."""

LEAVE_SECONDS = 0.5
"""What the sender's thread gets to end: the interpreter may be about to, and cannot end a thread gently."""


class PrefectMirror:
    """See the module.

    `history`: what becomes of states that jobs have passed through before they could be told. "auto": they are left
    out while more than a set number of changes are waiting. "full": all are told, however long it takes. "final": they
    are always left out. `stall_timeout`: seconds without any progress of the server after which `drain` and `close`
    give up. `spool`: where final states are kept that the server did not get; by default below PREFECT_HOME.
    """

    def __init__(
        self, *, history: History = "auto", stall_timeout: float = STALL_TIMEOUT, spool: Spool | None = None
    ) -> None:
        self._stall_timeout = stall_timeout
        self._spool = spool or Spool(server_name())
        self._spool_is_sent = self._spool.is_empty
        self._histories: dict[str, JobHistory] = {}
        """Those of jobs that are not over, by job id."""
        self._followed: dict[str, EngineHistory] = {}
        """Those of engines' task runs that are not over, by job id."""
        self._jobs = 0
        self._spooled: tuple[str, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._unsent = UnsentChanges(history)
        self._lock = threading.Lock()
        """Held by the sender but for the time it waits; guards sender and unsent."""
        self._sender = EventSender(self._next_events, self._lock)
        self._wake = threading.Event()
        self._turned = threading.Event()
        """Set after each turn of the sender, for whoever waits for the last."""
        self._own_at = 0.0
        """When there last was something of one's own to tell, or the sender began."""
        self._closed = False
        self._deadline: float | None = None
        self._is_away = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._counting = threading.Lock()
        self._be_of_flow_run()

    def _be_of_flow_run(self) -> None:
        self.flow_run_id = current_flow_run_id()
        self._flow: FlowRunFacts = flow_run_facts()
        self._context = contextvars.copy_context()

    def join_flow_run(self) -> None:
        """Let the jobs be task runs of the flow run around the caller, wherever the mirror was made.

        Raises:
            RuntimeError: it has mirrored jobs elsewhere, or is closed.
        """
        if self._closed or (self._jobs and self.flow_run_id != current_flow_run_id()):
            raise RuntimeError("this mirror is closed, or tells of another flow run's jobs: make one for each flow run")
        if not self._jobs:
            self._be_of_flow_run()

    # --- what happens, told on the supervisor's thread ---

    def __call__(self, transition: Transition) -> None:
        """An observer: every job of the executors that it observes is mirrored from its submission on."""
        job = transition.job
        if transition.previous is None and job.job_id not in self._histories:
            driver = job.live.driver
            if driver is not None and driver.applies_max_runtime:
                return  # Prefect's engine drives it, and tells of it
            self.add_job(job)
        self.enqueue(transition)

    def add_job(self, job: Job) -> JobHistory:
        """Mirror this job, which is about to be submitted to an executor whose other jobs are not: see `note`."""
        history = self._histories[job.job_id] = JobHistory(job, task_run_id(self.flow_run_id, job))
        self._jobs += 1
        return history

    def remove_job(self, job: Job) -> None:
        """Do not mirror this job after all: it was not submitted."""
        if self._histories.pop(job.job_id, None) is not None:
            self._jobs -= 1

    def enqueue(self, transition: Transition) -> None:
        """An observer, for the expected jobs alone."""
        history = self._histories.get(transition.job.job_id)
        if history is not None:
            self.enqueue_for(history, transition)

    def enqueue_for(self, history: JobHistory, transition: Transition) -> None:
        """The same, for whoever kept what `expect` gave."""
        if self._closed:
            return
        if transition.status in TERMINAL:
            self._histories.pop(history.job_id, None)
        self._unsent.append(history, step_of(transition))
        self._wake_up()

    # --- what happens to engines' task runs, told on any thread ---

    def add_task_run(self, history: EngineHistory) -> None:
        """Mirror a task run that one of Prefect's engines drives: see `tell`."""
        with self._counting:
            self._jobs += 1
        self._followed[history.job_id] = history

    def enqueue_change(self, history: EngineHistory, change: EngineChange) -> bool:
        """The task run enters a state; False where the mirror is closed, and takes nothing."""
        if self._closed:
            return False
        if change.is_final:
            self._followed.pop(history.job_id, None)
        self._unsent.append(history, change)
        self._wake_up()
        return True

    def _wake_up(self) -> None:
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._start()

    # --- the end ---

    def drain(self, timeout: float | None = None, *, check: Callable[[], object] | None = None) -> MirrorReport:
        """Wait until the server has all that happened so far: at most `timeout` seconds, or while it shows progress.

        What earlier processes kept gets SPOOL_SECONDS beyond that. `check()` is called ten times a second meanwhile:
        what it raises ends the wait.
        """
        began = time.monotonic()
        ends = None if timeout is None else began + timeout
        self._start()
        self._wake.set()
        while not self._is_done() and not self._is_given_up(began, ends):
            if check is not None:
                check()
            self._turned.wait(TURN_SECONDS)
            self._turned.clear()
        return self.report()

    def hurry(self) -> None:
        """Tell only how jobs ended from now on, those that are over first and all at once: the end is near."""
        self._unsent.hurries = True
        self._sender.hurry()
        self._wake.set()

    def close(self, timeout: float | None = None) -> MirrorReport:
        """Drain, keep on disk what the server did not get, and end.

        With a `timeout` (seconds) it hurries: only how jobs ended is told, within that time. Called from another thread
        meanwhile, it hastens what goes on; an interrupt leaves all the rest to the disk.
        """
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
            self.hurry()
        try:
            if not self._closed and (self._jobs or self._thread is not None):
                self.drain()
        finally:
            self._end()
        return self.report()

    def _end(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._keep_the_rest()
                self.report().log()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LEAVE_SECONDS)  # one that hangs in a request is left behind

    def report(self) -> MirrorReport:
        """How far the server's record goes by now."""
        return MirrorReport(
            jobs=self._jobs,
            recorded=self._sender.recorded,
            resent=self._sender.resent,
            omitted=self._unsent.omitted,
            spooled=self._spooled,
            missing=self._missing + tuple(event.job_id for event in self._sender.given_up),
            unfinished=(*self._histories, *self._followed),
        )

    def unrecorded(self) -> tuple[str, ...]:
        """The jobs that are over, of which the server is not known to have the final state."""
        with self._lock:
            on_their_way = (event for event in self._sender.unrecorded() if event.origin is None)
            waiting = (history.job_id for history in self._unsent.over())
            return (*(event.job_id for event in on_their_way), *waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(None if kind is None else HURRIED_CLOSE_SECONDS)

    def _is_done(self) -> bool:
        """Whether the server has all of one's own, and has had its time for the spool."""
        with self._lock:
            if self._closed or not self._is_busy:
                return True
            is_late = self._unsent.hurries or time.monotonic() - self._own_at > SPOOL_SECONDS
            return is_late and not self._has_own

    @property
    def _has_own(self) -> bool:
        return bool(self._unsent) or self._sender.has_own

    @property
    def _is_busy(self) -> bool:
        spooled = not self._spool_is_sent and not self._unsent.hurries  # no time for others' in a hurry
        return bool(self._unsent) or not self._sender.is_idle or spooled

    def _is_given_up(self, began: float, ends: float | None) -> bool:
        now = time.monotonic()
        limits = [limit for limit in (ends, self._deadline) if limit is not None]
        if limits:
            return now >= min(limits)
        return now - max(began, self._sender.progress_at) > self._stall_timeout

    def _keep_the_rest(self) -> None:
        """Write down the final states that the server may not have."""
        events = itertools.chain(self._sender.unrecorded(), self._unsent.finals(self._flow))
        self._spooled, self._missing = self._spool.keep(events)

    # --- the sender's thread ---

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                run, self._own_at = self._context.copy().run, time.monotonic()
                self._thread = threading.Thread(target=run, args=(self._run,), name="prefect-mirror", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            try:
                with ServerApi.connected() as api:
                    self._serve(api)
            except httpx.HTTPError as error:
                self._note_away(error)
            except Exception:
                logger.exception("the mirror cannot tell a Prefect server of its jobs, and tries again")
            if not self._closed:
                time.sleep(AWAY_SECONDS)

    def _serve(self, api: ServerApi) -> None:
        self._flow = read_flow_run_facts(self._flow)
        left_behind = self._spool.claim()
        while not self._closed:
            self._wake.clear()
            try:
                with self._lock:
                    self._turn(api, left_behind)
                self._turned.set()
                self._is_away = False
            except httpx.HTTPError as error:
                self._note_away(error)
                self._wake.wait(AWAY_SECONDS)
            self._rest()

    def _turn(self, api: ServerApi, left_behind: Iterator[SpoolFile]) -> None:
        self._unsent.take_in()
        if self._has_own:
            self._own_at = time.monotonic()
        self._sender.turn(api)
        if self._spool_is_sent or self._unsent.hurries or self._sender.left_behind:
            return
        file = next(left_behind, None)
        self._spool_is_sent = file is None
        if file is not None:
            events = file.events()
            logger.info("telling the server %d final states that an earlier process kept", len(events))
            self._sender.send_also(api, events)

    def _rest(self) -> None:
        """Until there is something to do, and then a little, so that there is more; not in a hurry."""
        if self._wake.wait(self._pause() if self._is_busy else None) and self._deadline is None:
            time.sleep(LINGER)

    def _pause(self) -> float:
        return min(TURN_SECONDS, max(0.0, self._sender.seconds_to_look()))

    def _next_events(self, most: int) -> list[StateEvent]:
        return self._unsent.next_events(most, self._flow)

    def _note_away(self, error: httpx.HTTPError) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("the Prefect server is away, and is tried again: %r", error)
