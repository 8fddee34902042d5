"""PrefectMirror: an executor's jobs as task runs in Prefect, every state of them, none lost.

    executor ──transition──► mirror ──events──► courier ──paced──► server
                                                   │ what cannot be brought in time
                                                   └──► spool ──► the next mirror

Attach it to an executor, and close it at the end:

    with PrefectMirror() as mirror, JobExecutor(observers=[mirror]) as executor:
        executor.submit(...)
    print(mirror.report())

Inside a flow run its jobs are task runs of that flow run, elsewhere task runs of their own. `run_jobs` does all this
for many jobs at once. Jobs that a `job_task` runs are Prefect's engine's to tell of, and left alone.

Telling takes no time of the executor's: a thread of the mirror's sends, at the pace at which the server records
(`pacing`, `courier`). A mirror that is behind leaves out, as `history` says, states that jobs have passed through and
left behind; the true final state, run count and times of a job always reach the server. If they truly cannot, the
report says of how many jobs, and which.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import httpx

from executor_adapter.job import TERMINAL, Job, Transition, uuid7
from executor_adapter.prefect.backlog import Backlog, History
from executor_adapter.prefect.courier import Courier
from executor_adapter.prefect.flow_run_facts import current_flow_run_id, flow_run_facts, read_flow_run_facts
from executor_adapter.prefect.job_history import JobHistory, step_of, task_run_id
from executor_adapter.prefect.mirror_report import MirrorReport
from executor_adapter.prefect.server_api import ServerApi, server_name
from executor_adapter.prefect.spool import Spool, SpoolFile
from executor_adapter.prefect.state_events import FlowRunFacts, StateEvent

logger = logging.getLogger("executor_adapter.prefect")

LINGER = 0.05
"""Seconds for which changes are gathered, so that one request carries many."""

TURN_SECONDS = 0.1
"""Between two turns of a courier that is not done."""

AWAY_SECONDS = 1.0
"""Between two attempts to reach a server that is away."""

PATIENCE = 90.0
"""Seconds for which a server may show no progress at all before what it does not have is given up, and spooled."""

HURRY_SECONDS = 4.0
"""What leaving the mirror by an exception gives the server for the final states."""


class PrefectMirror:
    """See the module.

    `history`: what becomes of states that jobs have passed through before they could be told. "auto": they are left
    out while more than a set number of changes are waiting. "full": all are told, however long it takes. "final": they
    are always left out. `patience`: seconds without any progress of the server after which `drain` and `close` give
    up. `spool`: where final states are kept that the server did not get; by default below PREFECT_HOME.
    """

    def __init__(self, *, history: History = "auto", patience: float = PATIENCE, spool: Spool | None = None) -> None:
        self._patience = patience
        self._spool = spool or Spool(server_name())
        self._spool_is_sent = self._spool.is_empty
        self._histories: dict[str, JobHistory] = {}
        """Those of jobs that are not over, by job id."""
        self._jobs = 0
        self._spooled: tuple[str, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._backlog = Backlog(history)
        self._lock = threading.Lock()
        """Held by the sender but for the time it waits; guards courier and backlog."""
        self._courier = Courier(self._next_events, self._lock)
        self._wake = threading.Event()
        self._closed = False
        self._deadline: float | None = None
        self._is_away = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._be_of_flow_run()

    def _be_of_flow_run(self) -> None:
        self.flow_run_id = current_flow_run_id()
        self._flow: FlowRunFacts = flow_run_facts()
        self._context = contextvars.copy_context()

    def join(self) -> None:
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
            driver = job._live.driver
            if driver is not None and driver.applies_max_runtime:
                return  # Prefect's engine drives it, and tells of it
            self.expect(job)
        self.note(transition)

    def expect(self, job: Job) -> JobHistory:
        """Mirror this job, which is about to be submitted to an executor whose other jobs are not: see `note`."""
        namespace = self.flow_run_id
        run_id = task_run_id(namespace, job.job_id) if namespace is not None else uuid7()
        history = self._histories[job.job_id] = JobHistory(job, run_id)
        self._jobs += 1
        return history

    def dismiss(self, job: Job) -> None:
        """Do not mirror this job after all: it was not submitted."""
        if self._histories.pop(job.job_id, None) is not None:
            self._jobs -= 1

    def note(self, transition: Transition) -> None:
        """An observer, for the expected jobs alone."""
        job_id = transition.job.job_id
        history = self._histories.get(job_id)
        if history is None or self._closed:
            return
        if transition.status in TERMINAL:
            del self._histories[job_id]
        self._backlog.append(history, step_of(transition))
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._start()

    # --- the end ---

    def drain(self, timeout: float | None = None) -> MirrorReport:
        """Wait until the server has all that happened so far: at most `timeout` seconds, or while it shows progress."""
        began = time.monotonic()
        ends = None if timeout is None else began + timeout
        self._start()
        while not self._is_done() and not self._is_given_up(began, ends):
            self._wake.set()
            time.sleep(TURN_SECONDS / 2)
        return self.report()

    def hasten(self) -> None:
        """Tell only how jobs ended from now on, those that are over first and all at once: the end is near."""
        self._backlog.hurries = True
        self._courier.hurry()
        self._wake.set()

    def close(self, timeout: float | None = None) -> MirrorReport:
        """Drain, keep on disk what the server did not get, and end.

        With a `timeout` (seconds) it hurries: only how jobs ended is told, within that time. Called again, from
        another thread or after an interrupt, it hastens what goes on.
        """
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
            self.hasten()
        if not self._closed and (self._jobs or self._thread is not None):
            self.drain()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._keep_the_rest()
                _say(self.report())
        self._wake.set()
        return self.report()

    def report(self) -> MirrorReport:
        """How far the server's record goes by now."""
        return MirrorReport(
            jobs=self._jobs,
            recorded=self._courier.recorded,
            told_again=self._courier.told_again,
            left_out=self._backlog.left_out,
            spooled=self._spooled,
            missing=self._missing + tuple(_job_id(event) for event in self._courier.given_up),
            unfinished=tuple(self._histories),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(None if kind is None else HURRY_SECONDS)

    def _is_done(self) -> bool:
        with self._lock:
            return self._closed or not self._is_busy

    @property
    def _is_busy(self) -> bool:
        spooled = not self._spool_is_sent and self._deadline is None  # no time for others' in a hurry
        return bool(self._backlog) or not self._courier.is_idle or spooled

    def _is_given_up(self, began: float, ends: float | None) -> bool:
        now = time.monotonic()
        limits = [limit for limit in (ends, self._deadline) if limit is not None]
        if limits:
            return now >= min(limits)
        return now - max(began, self._courier.progress_at) > self._patience

    def _keep_the_rest(self) -> None:
        """Write down the final states that the server may not have; what the spool holds already stays there."""
        events = self._courier.unrecorded()
        for event in events:
            if event.origin is not None:
                event.origin.release()
        ids: list[str] = []
        own = (event for event in events if event.origin is None)
        left = _noted(itertools.chain(own, self._backlog.finals(self._flow)), ids)
        kept = 0
        try:
            kept = self._spool.keep(left)
        except OSError:
            logger.exception("final states could not be written to disk")
        for _ in left:  # those that there is no room for have names too
            pass
        self._spooled, self._missing = tuple(ids[:kept]), tuple(ids[kept:])

    # --- the sender's thread ---

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                run = self._context.copy().run
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
                self._is_away = False
            except httpx.HTTPError as error:
                self._note_away(error)
                self._wake.wait(AWAY_SECONDS)
            self._rest()

    def _turn(self, api: ServerApi, left_behind: Iterator[SpoolFile]) -> None:
        self._backlog.take_in()
        self._courier.turn(api)
        if self._spool_is_sent or self._deadline is not None or not self._courier.is_idle:
            return
        file = next(left_behind, None)
        self._spool_is_sent = file is None
        if file is not None:
            events = file.events()
            logger.info("telling the server %d final states that an earlier process kept", len(events))
            self._courier.again.extend(events)

    def _rest(self) -> None:
        """Until there is something to do, and then a little, so that there is more; not in a hurry."""
        if self._wake.wait(TURN_SECONDS if self._is_busy else None) and self._deadline is None:
            time.sleep(LINGER)

    def _next_events(self, most: int) -> list[StateEvent]:
        return self._backlog.next_events(most, self._flow)

    def _note_away(self, error: httpx.HTTPError) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("the Prefect server is away, and is tried again: %r", error)


def _noted(events: Iterable[StateEvent], ids: list[str]) -> Iterator[StateEvent]:
    """The events; the ids of their jobs are written down as they pass."""
    for event in events:
        ids.append(_job_id(event))
        yield event


def _job_id(event: StateEvent) -> str:
    told: str = json.loads(event.body)["payload"]["task_run"]["dynamic_key"]
    return told


def _say(report: MirrorReport) -> None:
    if not report.complete:
        logger.warning("not all jobs are recorded: %s", report)
    elif report.left_out:
        logger.info("%s: history='full' tells them all", report)
