"""Ends a cancelled flow run that was started by hand: Prefect leaves that to runners, and such a run has none.

The watches of the flow run end its jobs. The calls that wait for the jobs raise in the flow, which fails. Because the
run is Cancelling, the server refuses the Failed state, and the engine calls the flow's `on_cancellation` hooks. A flow
that goes on with something else is interrupted. Once the flow has ended, or was interrupted, its run becomes Cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Cancelling
from prefect.utilities.asyncutils import run_coro_as_sync

from executor_adapter.executor import signal_watch
from executor_adapter.prefect.child.logs import RunLogger

logger = logging.getLogger("executor_adapter.prefect")

INTERRUPT_TIMEOUT = 4.0
"""Seconds for a cancelled flow to end by itself, before it is interrupted: a little more than its jobs have."""

END_TIMEOUT = 60.0
"""Seconds for an interrupted flow to end, before its run is set to Cancelled anyway."""

QUIET_SECONDS = 2.0
"""A flow run whose end is not reported counts as ended once none of its jobs has run for this long."""

MESSAGE = "Flow run was cancelled."

_ACCEPTABLE_ENDS = (StateType.CANCELLED, StateType.COMPLETED)

OWN_CLIENT_SETTINGS: dict[str, Any] = {}
"""HTTP settings that make `get_client` return a new client. An empty dictionary is enough.

Without settings `get_client` returns the flow's client, which is closed when the flow ends.
"""


class FlowRunEnding:
    """Ends one cancelled flow run.

    Make it in the flow run. The watches report to it when they open and close; `begin` is called once, on a cancel.
    """

    def __init__(self, flow_run_id: UUID) -> None:
        self.flow_run_id = flow_run_id
        self._changed = threading.Condition()
        self._open_watches = 0
        self._full_watches = 0
        """The open watches that last until the flow run has ended."""
        self._had_full_watch = False
        self._jobs_finished = False
        self._context = _context_of(flow_run_id)
        self._made_in = copy_context()
        """With the settings of the flow run, so that its own server is told: others may hold where it is ended."""
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._loop, self._task = _asyncio_task()

    # --- reports of the watches ---

    def on_watch_opened(self, *, until_flow_ends: bool) -> None:
        """Count an opened watch, which lasts until the flow run has ended if `until_flow_ends`."""
        with self._changed:
            self._open_watches += 1
            self._full_watches += until_flow_ends
            self._had_full_watch |= until_flow_ends

    def on_jobs_finished(self) -> None:
        """Do not interrupt the flow any more: its jobs have finished, and their states are being recorded."""
        self._jobs_finished = True

    def on_watch_closed(self, *, until_flow_ends: bool) -> None:
        """Count a closed watch. With the last full one the flow run has ended: a Cancelling run becomes Cancelled."""
        with self._changed:
            self._open_watches -= 1
            self._full_watches -= until_flow_ends
            flow_has_ended = until_flow_ends and not self._full_watches
            self._changed.notify_all()
        if flow_has_ended and self._context is not None and self._has_no_runner([self.flow_run_id]):
            flow_run = self._context.flow_run
            # The server has refused the engine's final state: it accepts only Cancelled now.
            if flow_run is not None and flow_run.state is not None and flow_run.state.is_cancelling():
                self._made_in.copy().run(set_cancelled, self.flow_run_id)

    def _has_ended(self) -> bool:
        return not self._full_watches if self._had_full_watch else not self._open_watches

    # --- after a cancel ---

    def begin(self, lineage: list[UUID]) -> None:
        """Start to end the flow runs of `lineage`: this one first, then its parents up to the one that was cancelled.

        A runner ends them itself, and never tells their process the state that the engine logs at its end.
        """
        if not self._has_no_runner(lineage):
            if self._context is not None and self._context.flow_run is not None:
                self._context.flow_run.state = Cancelling(message=MESSAGE)
            return
        context = self._made_in.copy()
        # Not a daemon thread: the interpreter must not exit before the server knows.
        threading.Thread(target=context.run, args=(self._end, lineage), name="cancelled-flow-run").start()

    @staticmethod
    def _has_no_runner(lineage: list[UUID]) -> bool:
        """Return whether the flow run was started by hand: a runner names its flow run in the environment."""
        return os.environ.get("PREFECT__FLOW_RUN_ID") != str(lineage[-1])

    def _end(self, lineage: list[UUID]) -> None:
        try:
            for subflow in lineage[:-1]:
                _propose(subflow, Cancelling(message=MESSAGE), unless=(StateType.CANCELLING, StateType.CANCELLED))
            if not self._wait_for_end(INTERRUPT_TIMEOUT):
                self._interrupt()
                self._wait_for_end(END_TIMEOUT)
            if not self._had_full_watch or len(lineage) > 1:
                threading.Event().wait(QUIET_SECONDS)
            for each in lineage:
                set_cancelled(each)
            if len(lineage) > 1:
                self._correct_states(lineage)
        except Exception:
            logger.exception("cannot end a cancelled flow run", extra={"flow_run_id": self.flow_run_id})

    def _correct_states(self, lineage: list[UUID]) -> None:
        """Set Cancelled where the server has accepted another final state.

        This flow run may have failed, after its jobs had ended, before it was Cancelling. Its parents do not report
        their end here; if they end only now, the server accepts their state.
        """
        threading.Event().wait(QUIET_SECONDS)
        _propose(self.flow_run_id, Cancelled(message=MESSAGE), unless=_ACCEPTABLE_ENDS, force=True)
        for parent in lineage[1:]:
            _propose(parent, Cancelled(message=MESSAGE), unless=(StateType.CANCELLED,), force=True)

    def _wait_for_end(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._has_ended, seconds)

    def _interrupt(self) -> None:
        """Raise an exception in the flow, if it runs in the main thread or in an event loop."""
        with self._changed:
            reachable = self._had_full_watch and (self._in_main_thread or self._task)
            if self._has_ended() or self._jobs_finished or not reachable:
                return
        state = self._set_cancelled_before_interrupt()
        with self._changed:
            # Under the lock the flow cannot end meanwhile: the interrupt would hit the code after it.
            if self._has_ended() or self._jobs_finished:
                return
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            elif state is not None:
                signal_watch.interrupt_main_thread(signal.SIGINT, signal.SIGTERM)

    def _set_cancelled_before_interrupt(self) -> State[Any] | None:
        """Set the final state first: the engine would mark an interrupted flow without one as Crashed."""
        flow_run = self._context.flow_run if self._context is not None else None
        if self._context is None or flow_run is None:
            return None
        flow_run.state = Cancelled(message=MESSAGE)
        flow = self._context.flow
        call_hooks((flow and flow.on_cancellation_hooks) or [], logger, flow, flow_run, flow_run.state)
        set_cancelled(self.flow_run_id)
        return flow_run.state


def call_hooks(hooks: Iterable[Callable[..., Any]], log: RunLogger, *args: Any) -> None:
    """Call the hooks of a run with its flow or task, itself and its state, as Prefect's engines do."""
    for hook in hooks:
        try:
            result = hook(*args)
            if inspect.iscoroutine(result):
                run_coro_as_sync(result)
        except Exception:
            log.exception("An error was encountered while running hook %r", hook)


def set_cancelled(flow_run_id: UUID) -> None:
    """Set a flow run that is Cancelling to Cancelled. A flow run in another state stays as it is."""
    _propose(flow_run_id, Cancelled(message=MESSAGE), only=StateType.CANCELLING)


def _propose(
    flow_run_id: UUID,
    state: State[Any],
    *,
    only: StateType | None = None,
    unless: tuple[StateType, ...] = (),
    force: bool = False,
) -> None:
    """Set the state of a flow run, if its type now is `only`, where that is given, and not one of `unless`."""
    with get_client(sync_client=True, httpx_settings=OWN_CLIENT_SETTINGS) as client:
        current = client.read_flow_run(flow_run_id).state
        if current is not None and current.type not in unless and only in (None, current.type):
            client.set_flow_run_state(flow_run_id, state, force=force)


def _context_of(flow_run_id: UUID) -> FlowRunContext | None:
    context = FlowRunContext.get()
    is_own = context is not None and context.flow_run is not None and context.flow_run.id == flow_run_id
    return context if is_own else None


def _asyncio_task() -> tuple[asyncio.AbstractEventLoop | None, asyncio.Task[Any] | None]:
    try:
        return asyncio.get_running_loop(), asyncio.current_task()
    except RuntimeError:
        return None, None
