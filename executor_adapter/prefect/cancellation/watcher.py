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
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.utilities.engine import capture_sigterm

from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor import ending_handlers, sentinel_client, signal_watch
from executor_adapter.prefect.cancellation.flow_end import FlowRunEnding
from executor_adapter.prefect.crashes.records import FlowRunRecord, Records
from executor_adapter.prefect.crashes.sweep import sweep_earlier_runs
from executor_adapter.prefect.mirror.server import ServerApi, server_name

logger = logging.getLogger("executor_adapter.prefect")

ASK_TIMEOUT = 1.0
"""Seconds to find out whether a signal that ends the program came with a cancel of the flow run."""

E = TypeVar("E", bound=BaseException)


class CancelledRuns:
    """Holds the ids of cancelled flow runs, and has the watcher ask for others at once where that matters."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ids: set[UUID] = set()
        self.questions = 0
        """How often the watcher was asked to poll at once."""
        self.answers: dict[str, int] = {}
        """How many questions it has answered, by the name of each server that a thread of it polls."""
        self._asked_after: signal.Signals | None = None
        """The signal after which the watcher was asked, whether or not it answered."""

    def is_asked(self, server: str) -> bool:
        """Return whether the watcher has a question to answer for the server."""
        return self.questions > self.answers[server]

    def answer(self, server: str, questions: int) -> None:
        """Note that the watcher has polled the server, or cannot, after so many questions."""
        with self.changed:
            self.answers[server] = questions
            self.changed.notify_all()

    def ask(self) -> None:
        """Have the watcher poll at once, and wait for its answer, for ASK_TIMEOUT at most."""
        with self.changed:
            self.questions += 1
            number = self.questions
            self.changed.notify_all()
            self.changed.wait_for(lambda: min(self.answers.values(), default=number) >= number, ASK_TIMEOUT)

    def was_cancelled(self, flow_run_id: UUID) -> bool:
        """Return whether the flow run is known to be cancelled, by another poll if a signal ends the program."""
        with self.changed:
            ended_by = signal_watch.ended_by
            if ended_by is not None and ended_by is not self._asked_after:
                self.ask()
            self._asked_after = ended_by
            return flow_run_id in self.ids


cancelled_runs = CancelledRuns()
signal_watch.first.append(lambda _: cancelled_runs.ask())  # What the executors end because of it shall say why.

FLOW_RUN_CANCELLED = "its flow run was cancelled"


def explained(error: E, flow_run_id: UUID | None) -> E | JobCancelledError:
    """Return the error of a job of the flow run; for a cancellation that came with the flow run's, one that says so.

    A runner or a worker sends a signal when it cancels a flow run, and when it stops for another reason. So after a
    signal the server is asked, for at most ASK_TIMEOUT.
    """
    if flow_run_id is None or not is_a(error, JobCancelledError) or not cancelled_runs.was_cancelled(flow_run_id):
        return error
    return JobCancelledError(FLOW_RUN_CANCELLED, **error.context)


POLL_INTERVAL = 2.0
"""Seconds between two requests."""

CANCEL_TYPES = frozenset({StateType.CANCELLING.value, StateType.CANCELLED.value})


@dataclass(eq=False)
class FlowRunWatch:
    """One registration of `watch_flow_run`: calls `on_cancel` when the flow run is cancelled."""

    run: _WatchedRun
    on_cancel: Callable[[], object]
    until_flow_ends: bool

    def notify(self) -> None:
        """Call `on_cancel`; an exception of it is logged."""
        try:
            self.on_cancel()
        except Exception:
            logger.exception("a flow run was cancelled, but not all of its jobs could be cancelled")

    def close(self) -> None:
        """End the watch. Closing a watch with `until_flow_ends` reports that the flow run has ended."""
        _watcher.close(self)


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
    return _watcher.add(flow_run_id, on_cancel, until_flow_ends=until_flow_ends)


class _WatchedRun:
    """A watched flow run, with the flow runs that it is a subflow run of."""

    def __init__(self, flow_run_id: UUID) -> None:
        self.server = server_name()
        self.lineage = [flow_run_id]
        """This flow run, its parent, and so on, as far as they are known."""
        self.watches: list[FlowRunWatch] = []
        self.end = FlowRunEnding(flow_run_id)

    def extend_lineage(self, records: Records, known: dict[str, FlowRunRecord]) -> None:
        """Extend the lineage up to the flow run that is not a subflow run, and add to `known` what is added."""
        last = known.get(str(self.lineage[-1]))
        while last is not None and (callers := records.callers([last])):
            (last,) = callers
            self.lineage.append(UUID(last.id))
            known[last.id] = last

    def cancel(self, cancelled: UUID) -> None:
        """Notify the watches. `cancelled` is the flow run that was cancelled: this one, or one of its lineage."""
        with _watcher.lock:
            cancelled_runs.ids.add(self.lineage[0])
            watches = list(self.watches)
        logger.warning("flow run %s was cancelled: cancelling its jobs", cancelled)
        # Before the jobs end, so that the flow runs are Cancelling, if possible, when waiting for the jobs raises.
        self.end.begin(self.lineage[: self.lineage.index(cancelled) + 1])
        for watch in watches:
            watch.notify()


class _Watcher:
    """The polling threads, one for each server on which a flow run was watched: they ask nothing while none is."""

    def __init__(self) -> None:
        self.lock = cancelled_runs.changed
        self._runs: dict[UUID, _WatchedRun] = {}

    def add(self, flow_run_id: UUID, on_cancel: Callable[[], object], *, until_flow_ends: bool) -> FlowRunWatch:
        """Register a watch, and start the thread of its server for the first one there."""
        with self.lock:
            run = self._runs.get(flow_run_id)
            if run is None:
                signal_watch.arm()
                run = self._runs[flow_run_id] = _WatchedRun(flow_run_id)
            watch = FlowRunWatch(run, on_cancel, until_flow_ends)
            run.watches.append(watch)
            run.end.on_watch_opened(until_flow_ends=until_flow_ends)
            if run.server not in cancelled_runs.answers:
                cancelled_runs.answers[run.server] = cancelled_runs.questions
                # The thread uses the caller's settings.
                arguments = (self._run, run.server)
                threading.Thread(target=copy_context().run, args=arguments, name="cancel-watch", daemon=True).start()
            self.lock.notify_all()
        if flow_run_id in cancelled_runs.ids:
            watch.notify()
        return watch

    def close(self, watch: FlowRunWatch) -> None:
        """Remove a watch, unless it was removed before."""
        run = watch.run
        with self.lock:
            if watch not in run.watches:
                return
            run.watches.remove(watch)
            if not run.watches:
                del self._runs[run.lineage[0]]
        run.end.on_watch_closed(until_flow_ends=watch.until_flow_ends)

    def _run(self, server: str) -> None:
        while True:
            try:
                # The client is kept while the server answers: making one takes longer than a request.
                with ServerApi.connected() as api:
                    self._poll(Records(api), server)
            except Exception as error:
                logger.debug("cannot ask the server for flow runs: %r", error)
                cancelled_runs.answer(server, cancelled_runs.questions)
                self._wait_for_runs(server)

    def _poll(self, records: Records, server: str) -> NoReturn:
        while True:
            runs = self._wait_for_runs(server)
            questions = cancelled_runs.questions
            self._check(records, runs)
            cancelled_runs.answer(server, questions)

    def _wait_for_runs(self, server: str) -> list[_WatchedRun]:
        """Wait until the server is to be asked, and return the flow runs that are watched there."""
        sentinel_client.ensure_alive()
        with self.lock:
            self.lock.wait_for(lambda: cancelled_runs.is_asked(server), POLL_INTERVAL)
            self.lock.wait_for(lambda: cancelled_runs.is_asked(server) or self._watched_on(server))
            return self._watched_on(server)

    def _watched_on(self, server: str) -> list[_WatchedRun]:
        runs = [run for flow_run_id, run in self._runs.items() if flow_run_id not in cancelled_runs.ids]
        return [run for run in runs if run.server == server]

    def _check(self, records: Records, runs: list[_WatchedRun]) -> None:
        known = records.flow_runs(str(each) for run in runs for each in run.lineage)
        for run in runs:
            run.extend_lineage(records, known)  # First, since a signal may come before the next poll.
            self._cancel_if_asked(run, known)

    def _cancel_if_asked(self, run: _WatchedRun, known: dict[str, FlowRunRecord]) -> None:
        for each in run.lineage:
            if (found := known.get(str(each))) is not None and found.state_type in CANCEL_TYPES:
                run.cancel(each)
                return


_watcher = _Watcher()
os.register_at_fork(after_in_child=cancelled_runs.answers.clear)  # A forked child has none of the threads.


def _is_prefects(number: signal.Signals, handler: Any) -> bool:
    """Return whether this is Prefect's handler of SIGTERM: it raises an exception in the flow, and the process ends."""
    return number == signal.SIGTERM and getattr(handler, "__module__", None) == capture_sigterm.__module__


ending_handlers.append(_is_prefects)
