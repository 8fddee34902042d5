"""Polls the states of flow runs while their jobs run, so that a cancel reaches them wherever they run.

    watch = watch_flow_run(flow_run_id, cancel_jobs)     # `cancel_jobs` is called once, on another thread
    ...
    watch.close()

A runner or a worker signals a cancel to a flow's process. A flow run that was started by hand gets no such signal, and
would stay Cancelling. So one thread of the process for each server asks it every two seconds, with one request for all
flow runs that are watched there. While a server cannot be reached, no cancel is known, and it is asked again.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.utilities.engine import capture_sigterm

from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor import ending_handlers, sentinel_client, signal_watch
from executor_adapter.prefect.cancellation.flow_end import FlowRunWatch, WatchedFlowRun
from executor_adapter.prefect.crashes.records import FlowRunRecord, Records
from executor_adapter.prefect.crashes.sweep import sweep_earlier_runs
from executor_adapter.prefect.mirror.server import ServerApi

logger = logging.getLogger("executor_adapter.prefect")

ASK_TIMEOUT = 1.0
"""Seconds to find out whether a signal that ends the program came with a cancel of the flow run."""

E = TypeVar("E", bound=BaseException)

FLOW_RUN_CANCELLED = "its flow run was cancelled"

POLL_INTERVAL = 2.0
"""Seconds between two requests."""

CANCEL_TYPES = frozenset({StateType.CANCELLING.value, StateType.CANCELLED.value})


class FlowRunWatcher:
    """Polls the watched flow runs of this process, and holds the ids of those that were cancelled.

    A thread for each server on which a flow run was watched asks nothing while none is.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.cancelled: set[UUID] = set()
        self.answers: dict[str, int] = {}
        """How many questions were answered, by the name of each server that a thread polls."""
        self._questions = 0
        """How often it was asked to poll at once."""
        self._asked_after: signal.Signals | None = None
        """The signal after which it was asked, whether or not it answered."""
        self._runs: dict[UUID, WatchedFlowRun] = {}

    def ask(self) -> None:
        """Poll at once, and wait for that, for ASK_TIMEOUT at most."""
        with self.changed:
            self._questions += 1
            number = self._questions
            self.changed.notify_all()
            self.changed.wait_for(lambda: min(self.answers.values(), default=number) >= number, ASK_TIMEOUT)

    def was_cancelled(self, flow_run_id: UUID) -> bool:
        """Return whether the flow run is known to be cancelled, by another poll if a signal ends the program."""
        with self.changed:
            ended_by = signal_watch.ended_by
            if ended_by is not None and ended_by is not self._asked_after:
                self.ask()
            self._asked_after = ended_by
            return flow_run_id in self.cancelled

    def why_cancelled(self, flow_run_id: UUID | None) -> str | None:
        """Return the message of a job that is cancelled now, if its flow run is known to be cancelled."""
        return FLOW_RUN_CANCELLED if flow_run_id in self.cancelled else None

    def add(self, flow_run_id: UUID, on_cancel: Callable[[], object], *, until_flow_ends: bool) -> FlowRunWatch:
        """Open a watch, and start the thread of its server for the first one there."""
        with self.changed:
            run = self._runs.get(flow_run_id)
            if run is None:
                signal_watch.arm()
                run = WatchedFlowRun(flow_run_id, self._runs, self.changed)
            if run.server not in self.answers:
                # The thread uses the caller's settings.
                arguments = (self._run, run.server)
                threading.Thread(target=copy_context().run, args=arguments, name="cancel-watch", daemon=True).start()
                self.answers[run.server] = self._questions  # Not before: the system may start no further thread.
            watch = run.add(on_cancel, until_flow_ends=until_flow_ends)
        if flow_run_id in self.cancelled:
            watch.notify()
        return watch

    # --- on the thread of a server ---

    def _run(self, server: str) -> None:
        while True:
            try:
                # The client is kept while the server answers: making one takes longer than a request.
                with ServerApi.connected() as api:
                    self._poll(Records(api), server)
            except Exception as error:
                logger.debug("cannot ask the server for flow runs: %r", error)
                self._answer(server, self._questions)
                self._wait_for_runs(server)

    def _poll(self, records: Records, server: str) -> NoReturn:
        while True:
            runs = self._wait_for_runs(server)
            questions = self._questions
            self._check(records, runs)
            self._answer(server, questions)

    def _answer(self, server: str, questions: int) -> None:
        """Note that the server was polled, or cannot be, after so many questions."""
        with self.changed:
            self.answers[server] = questions
            self.changed.notify_all()

    def _wait_for_runs(self, server: str) -> list[WatchedFlowRun]:
        """Wait until the server is to be asked, and return the flow runs that are watched there."""
        sentinel_client.ensure_alive()
        with self.changed:
            self.changed.wait_for(lambda: self._is_asked(server), POLL_INTERVAL)
            self.changed.wait_for(lambda: self._is_asked(server) or self._watched_on(server))
            return self._watched_on(server)

    def _is_asked(self, server: str) -> bool:
        return self._questions > self.answers[server]

    def _watched_on(self, server: str) -> list[WatchedFlowRun]:
        runs = [run for flow_run_id, run in self._runs.items() if flow_run_id not in self.cancelled]
        return [run for run in runs if run.server == server]

    def _check(self, records: Records, runs: list[WatchedFlowRun]) -> None:
        known = records.flow_runs(str(each) for run in runs for each in run.lineage)
        for run in runs:
            _extend_lineage(run, records, known)  # First, since a signal may come before the next poll.
            for number, each in enumerate(run.lineage, 1):
                if (found := known.get(str(each))) is not None and found.state_type in CANCEL_TYPES:
                    self._cancel(run, run.lineage[:number])
                    break

    def _cancel(self, run: WatchedFlowRun, lineage: list[UUID]) -> None:
        """Notify the watches. The last flow run of `lineage` was cancelled: this one, or one that it belongs to."""
        with self.changed:
            self.cancelled.add(lineage[0])
            watches = list(run.watches)
        logger.warning("flow run %s was cancelled: cancelling its jobs", lineage[-1])
        # Before the jobs end, so that the flow runs are Cancelling, if possible, when waiting for the jobs raises.
        try:
            run.begin_end(lineage)
        finally:  # The system may start no further thread.
            for watch in watches:
                watch.notify()


def _extend_lineage(run: WatchedFlowRun, records: Records, known: dict[str, FlowRunRecord]) -> None:
    """Extend the lineage up to the flow run that is not a subflow run, and add to `known` what is added."""
    last = known.get(str(run.lineage[-1]))
    while last is not None and (callers := records.callers([last])):
        (last,) = callers
        run.lineage.append(UUID(last.id))
        known[last.id] = last


flow_run_watcher = FlowRunWatcher()
signal_watch.first.append(lambda _: flow_run_watcher.ask())  # What the executors end because of it shall say why.
# A forked child has none of the threads, of which one may hold the lock.
os.register_at_fork(after_in_child=flow_run_watcher.answers.clear)
os.register_at_fork(after_in_child=flow_run_watcher.changed.__init__)  # type: ignore[misc]


def watch_flow_run(
    flow_run_id: UUID, on_cancel: Callable[[], object], *, until_flow_ends: bool = False
) -> FlowRunWatch:
    """Call `on_cancel()` once the flow run, or a flow run that it is a subflow run of, is Cancelling or Cancelled.

    Call it in the flow run. `on_cancel` cancels the jobs and prevents further ones. It must return at once, because it
    is called on the polling thread, or before this function returns if the cancel is known already.

    `until_flow_ends` is for a caller that closes the watch when the flow run ends, such as a task runner. Only with
    such a watch can a cancelled flow be interrupted, and its run be set to Cancelled as soon as it has ended.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        sweep_earlier_runs(context.flow_run)
    return flow_run_watcher.add(flow_run_id, on_cancel, until_flow_ends=until_flow_ends)


def explained(error: E, flow_run_id: UUID | None) -> E | JobCancelledError:
    """Return the error of a job of the flow run; for a cancellation that came with the flow run's, one that says so.

    A runner or a worker sends a signal when it cancels a flow run, and when it stops for another reason. So after a
    signal the server is asked, for at most ASK_TIMEOUT.
    """
    if flow_run_id is None or not is_a(error, JobCancelledError) or not flow_run_watcher.was_cancelled(flow_run_id):
        return error
    return JobCancelledError(FLOW_RUN_CANCELLED, **error.context)


def _is_prefects(number: signal.Signals, handler: Any) -> bool:
    """Return whether this is Prefect's handler of SIGTERM: it raises an exception in the flow, and the process ends."""
    return number == signal.SIGTERM and getattr(handler, "__module__", None) == capture_sigterm.__module__


ending_handlers.append(_is_prefects)
