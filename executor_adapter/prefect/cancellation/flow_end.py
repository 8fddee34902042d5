"""Ends a cancelled flow run that was started by hand: Prefect leaves that to runners, and such a run has none.

The watches of the flow run end its jobs. The calls that wait for the jobs raise in the flow, which fails. Because the
run is Cancelling, the server refuses the Failed state, and the engine calls the flow's `on_cancellation` hooks. A flow
that goes on with something else is interrupted. Once the flow has ended, or was interrupted, its run becomes Cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Cancelling
from prefect.utilities.asyncutils import run_coro_as_sync

from executor_adapter.error_codes import error_code_of
from executor_adapter.executor import signal_watch
from executor_adapter.prefect.child.logs import RunLogger
from executor_adapter.prefect.mirror.mirror import RECONNECT_INTERVAL
from executor_adapter.prefect.mirror.server import PERMANENT_ERROR_CODES, ServerApi, server_name

logger = logging.getLogger("executor_adapter.prefect")

INTERRUPT_TIMEOUT = 4.0
"""Seconds for a cancelled flow to end by itself, before it is interrupted: a little more than its jobs have."""

END_TIMEOUT = 60.0
"""Seconds for an interrupted flow to end, before its run is set to Cancelled anyway; and for the server at the exit."""

QUIET_SECONDS = 2.0
"""A flow run whose end is not reported counts as ended once none of its jobs has run for this long."""

MESSAGE = "Flow run was cancelled."

_OTHERS = frozenset(StateType) - {StateType.CANCELLING}


@dataclass(eq=False)
class FlowRunWatch:
    """One registration of `watch_flow_run`: calls `on_cancel` when the flow run is cancelled."""

    run: WatchedFlowRun
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
        self.run.remove(self)


class WatchedFlowRun:
    """A flow run of this process, which is in `runs` while it has watches; `begin_end` ends it, and is called once.

    Make it in the flow run. `changed` guards it and `runs`, and is notified of each watch.
    """

    def __init__(self, flow_run_id: UUID, runs: dict[UUID, WatchedFlowRun], changed: threading.Condition) -> None:
        self.server = server_name()
        self.lineage = [flow_run_id]
        """This flow run, its parent, and so on, as far as they are known."""
        self.watches: list[FlowRunWatch] = []
        self.jobs_finished = False
        """Whether its jobs have finished, and their states are being recorded: then the flow is not interrupted."""
        self._runs, self._changed = runs, changed
        self._is_ended_here = False
        """Whether it was cancelled, and no runner ends it."""
        self._end_is_seen = False
        """Whether it has had a watch that lasts until the flow run has ended."""
        context = FlowRunContext.get()
        is_own = context is not None and context.flow_run is not None and context.flow_run.id == flow_run_id
        self._flow, self._flow_run = (context.flow, context.flow_run) if context and is_own else (None, None)
        self._exits_since = math.inf
        """The monotonic time at which the main thread was first seen to have ended."""
        self._made_in = copy_context()
        """With the settings of the flow run, so that its own server is told: others may hold where it is ended."""
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._task: asyncio.Task[Any] | None = None
        with contextlib.suppress(RuntimeError):  # The caller is in no event loop.
            self._task = asyncio.current_task()

    def add(self, on_cancel: Callable[[], object], *, until_flow_ends: bool) -> FlowRunWatch:
        """Open a watch, which lasts until the flow run has ended if `until_flow_ends`."""
        watch = FlowRunWatch(self, on_cancel, until_flow_ends)
        with self._changed:
            self._runs[self.lineage[0]] = self
            self.watches.append(watch)
            self._end_is_seen |= until_flow_ends
            self._changed.notify_all()
        return watch

    def remove(self, watch: FlowRunWatch) -> None:
        """Close a watch, once. With the last full one the flow run has ended: a Cancelling run becomes Cancelled."""
        with self._changed:
            if watch not in self.watches:
                return
            self.watches.remove(watch)
            flow_has_ended = watch.until_flow_ends and self._has_ended()
            if (flow_has_ended or not self.watches) and self._runs.get(self.lineage[0]) is self:
                del self._runs[self.lineage[0]]
            self._changed.notify_all()
        state = self._flow_run.state if self._flow_run is not None else None
        # The server has refused the engine's final state then: it accepts only Cancelled now.
        if flow_has_ended and state and state.is_cancelling() and self._has_no_runner(self.lineage[0]):
            self._start(self._propose, self.lineage[0], Cancelled(message=MESSAGE), _OTHERS)

    def _has_ended(self) -> bool:
        return not any(watch.until_flow_ends or not self._end_is_seen for watch in self.watches)

    # --- after a cancel ---

    def begin_end(self, lineage: list[UUID]) -> None:
        """Start to end the flow runs of `lineage`: this one first, then its parents up to the one that was cancelled.

        A runner ends them itself, and never tells their process the state that the engine logs at its end.
        """
        if not self._has_no_runner(lineage[-1]):
            # Nothing of Prefect's leads from a subflow run to the object by which the engine around it knows its own.
            for each in gc.get_objects():
                if type(each) is FlowRun and each.id in lineage:
                    each.state = Cancelling(message=MESSAGE)
            return
        self._is_ended_here = True
        self._start(self._end_flow)  # Apart from what the server is told, which may not answer.
        self._start(self._end_runs, lineage)

    def _start(self, work: Callable[..., object], *args: Any) -> None:
        # No daemon, as the thread that starts it is: the interpreter must not exit before the server knows.
        run = functools.partial(self._made_in.copy().run, work, *args)
        threading.Thread(target=run, name="cancelled-flow-run", daemon=False).start()

    @staticmethod
    def _has_no_runner(flow_run_id: UUID) -> bool:
        """Return whether the flow run was started by hand: a runner names its flow run in the environment."""
        return os.environ.get("PREFECT__FLOW_RUN_ID") != str(flow_run_id)

    def _end_runs(self, lineage: list[UUID]) -> None:
        """Set the flow runs to Cancelled once the flow has ended."""
        for subflow in lineage[:-1]:
            self._propose(subflow, Cancelling(message=MESSAGE), (StateType.CANCELLING, StateType.CANCELLED))
        self._wait_for_end(INTERRUPT_TIMEOUT + END_TIMEOUT)
        if not self._end_is_seen or len(lineage) > 1:
            threading.Event().wait(QUIET_SECONDS)
        for each in lineage:
            self._propose(each, Cancelled(message=MESSAGE), _OTHERS)
        if len(lineage) == 1:
            return
        # The server may have accepted another final state: this flow run may have failed, after its jobs had ended,
        # before it was Cancelling. Its parents do not report their end here, and may end only now.
        threading.Event().wait(QUIET_SECONDS)
        for each in lineage:
            unless = (StateType.CANCELLED, StateType.COMPLETED) if each == lineage[0] else (StateType.CANCELLED,)
            self._propose(each, Cancelled(message=MESSAGE), unless, force=True)

    def _wait_for_end(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._has_ended, seconds)

    def _end_flow(self) -> None:
        """Raise an exception in a flow that does not end, if it runs in the main thread or in an event loop."""
        is_reachable = self._in_main_thread or self._task is not None
        if self._wait_for_end(INTERRUPT_TIMEOUT) or self.jobs_finished or not (self._end_is_seen and is_reachable):
            return
        self._note_interrupted()
        with self._changed:
            # Under the lock the flow cannot end meanwhile: the interrupt would hit the code after it.
            if self._has_ended() or self.jobs_finished:
                return
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
            elif self._flow_run is not None:
                signal_watch.interrupt_main_thread(signal.SIGINT, signal.SIGTERM)

    def finish_jobs(self, *, interrupted: bool) -> None:
        """Note that its jobs have finished, and whether an interruption ends the flow.

        One that nobody has asked for is that of a cancelled job, which an async flow awaits by `asyncio.wrap_future`.
        """
        self.jobs_finished = True
        if interrupted and self._is_ended_here and self._task is not None and not self._task.cancelling():
            self._note_interrupted()

    def _note_interrupted(self) -> None:
        """Make the flow run Cancelled and call its hooks, once: without a final state the engine calls it Crashed."""
        with self._changed:
            if self._flow_run is None or (self._flow_run.state and self._flow_run.state.is_final()):
                return
            self._flow_run.state = Cancelled(message=MESSAGE)
        hooks = (self._flow and self._flow.on_cancellation_hooks) or []
        call_hooks(hooks, logger, self._flow, self._flow_run, self._flow_run.state)

    def _propose(
        self, flow_run_id: UUID, state: State[Any], unless: Collection[StateType], *, force: bool = False
    ) -> None:
        """Set the state of a flow run, if its type now is not one of `unless`.

        A server that does not answer is asked again. Once the main thread has ended, the process waits for it no longer
        than END_TIMEOUT, for all flow runs together. What prevents the change is logged.
        """
        while True:
            try:
                with ServerApi.connected() as api:
                    api.propose(flow_run_id, state, unless, force=force)
                return
            except Exception as error:
                if not threading.main_thread().is_alive() and self._exits_since == math.inf:
                    self._exits_since = time.monotonic()
                    told = f"flow run {flow_run_id} is {state.name}"
                    logger.warning("waiting at most %g s to tell the Prefect server that %s", END_TIMEOUT, told)
                is_over = time.monotonic() > self._exits_since + END_TIMEOUT
                if is_over or not isinstance(error, httpx.HTTPError) or error_code_of(error) in PERMANENT_ERROR_CODES:
                    logger.exception("cannot set the cancelled flow run %s to %s", flow_run_id, state.name)
                    return
            time.sleep(RECONNECT_INTERVAL)


def call_hooks(hooks: Iterable[Callable[..., Any]], log: RunLogger, *args: Any) -> None:
    """Call the hooks of a run with its flow or task, itself and its state, as Prefect's engines do."""
    for hook in hooks:
        try:
            result = hook(*args)
            if inspect.iscoroutine(result):
                run_coro_as_sync(result)
        except Exception:
            log.exception("An error was encountered while running hook %r", hook)
