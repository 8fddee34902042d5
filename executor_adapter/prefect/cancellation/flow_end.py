"""How a flow run by hand ends once it is cancelled: Prefect leaves that to runners, and it has none.

Its jobs are ended by those who watch it. What waits for them raises in the flow, which fails; the server, since the run
is Cancelling, takes no such state, and the engine calls the flow's `on_cancellation` hooks. Where the flow goes on with
something else it is interrupted. When it is over, or was interrupted, the run is Cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import threading
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Cancelling
from prefect.utilities.asyncutils import run_coro_as_sync

from executor_adapter.executor.signals import signal_watch

logger = logging.getLogger("executor_adapter.prefect")

INTERRUPT_AFTER = 4.0
"""Seconds that a cancelled flow has to end by itself: a little more than its jobs have."""

GIVE_UP_AFTER = 60.0
QUIET_SECONDS = 2.0
"""A flow run whose end nobody sees counts as over when no job of it has lived for so long."""

MESSAGE = "Flow run was cancelled."

_OVER_AS_IT_SHOULD = (StateType.CANCELLED, StateType.COMPLETED)

OWN_CLIENT: dict[str, Any] = {}
"""Settings that differ from none: else `get_client` gives the flow's own client, which is closed when that ends."""


class FlowEnd:
    """The end of one flow run. Made in the flow run; `begin` is called once, when it is cancelled."""

    def __init__(self, flow_run_id: UUID) -> None:
        self.flow_run_id = flow_run_id
        self._changed = threading.Condition()
        self._open = 0
        self._whole = 0
        self._seen_whole = False
        self._settles = False
        self._context = _context_of(flow_run_id)
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._loop, self._task = _asyncio_task()

    # --- told by the watches ---

    def opened(self, *, whole: bool) -> None:
        """A watch was opened; `whole`: it lasts until the flow run is over."""
        with self._changed:
            self._open += 1
            self._whole += whole
            self._seen_whole |= whole

    def jobs_finished(self) -> None:
        """All that is left is to tell the server of its jobs."""
        self._settles = True

    def closed(self, *, whole: bool) -> None:
        """A watch was closed. With the last whole one the flow run is over, and if Cancelling, Cancelled."""
        with self._changed:
            self._open -= 1
            self._whole -= whole
            over = whole and not self._whole
            self._changed.notify_all()
        if over and self._context is not None and self._by_hand([self.flow_run_id]):
            flow_run = self._context.flow_run
            # The engine's last proposal was refused: the server takes nothing but Cancelled now.
            if flow_run is not None and flow_run.state is not None and flow_run.state.is_cancelling():
                conclude(self.flow_run_id)

    def _is_over(self) -> bool:
        return not self._whole if self._seen_whole else not self._open

    # --- once it is cancelled ---

    def begin(self, lineage: list[UUID]) -> None:
        """See to the end of `lineage`: this flow run, up to the one that was cancelled, which it is a subflow run of.

        Does nothing where a runner does.
        """
        if not self._by_hand(lineage):
            return
        context = copy_context()
        # No daemon: the interpreter must not exit before the server knows.
        threading.Thread(target=context.run, args=(self._end, lineage), name="cancelled-flow-run").start()

    @staticmethod
    def _by_hand(lineage: list[UUID]) -> bool:
        return os.environ.get("PREFECT__FLOW_RUN_ID") != str(lineage[-1])

    def _end(self, lineage: list[UUID]) -> None:
        try:
            for younger in lineage[:-1]:
                _propose(younger, Cancelling(message=MESSAGE), unless=(StateType.CANCELLING, StateType.CANCELLED))
            if not self._wait_until_over(INTERRUPT_AFTER):
                self._interrupt()
                self._wait_until_over(GIVE_UP_AFTER)
            if not self._seen_whole or len(lineage) > 1:
                threading.Event().wait(QUIET_SECONDS)
            for each in lineage:
                conclude(each)
            if len(lineage) > 1:
                self._correct(lineage)
        except Exception:
            logger.exception("a cancelled flow run could not be ended", extra={"flow_run_id": self.flow_run_id})

    def _correct(self, lineage: list[UUID]) -> None:
        """Let Cancelled be the last word where the server took another.

        This flow run, whose jobs had ended, may have failed before it was known to be Cancelling; the end of its elders
        is seen by nobody, and if it came only now, the server took whatever that was.
        """
        threading.Event().wait(QUIET_SECONDS)
        _propose(self.flow_run_id, Cancelled(message=MESSAGE), unless=_OVER_AS_IT_SHOULD, force=True)
        for elder in lineage[1:]:
            _propose(elder, Cancelled(message=MESSAGE), unless=(StateType.CANCELLED,), force=True)

    def _wait_until_over(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._is_over, seconds)

    def _interrupt(self) -> None:
        """Raise in the flow what it does not expect, if it can be reached: in the main thread, or in an event loop."""
        with self._changed:
            reachable = self._seen_whole and (self._in_main_thread or self._task)
            if self._is_over() or self._settles or not reachable:
                return
        state = self._conclude_before_interrupt()
        with self._changed:
            # Under the lock: the flow cannot end meanwhile, and leave the interrupt to whatever comes after it.
            if self._is_over() or self._settles:
                return
            if self._loop is not None and self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)
            elif state is not None:
                signal_watch.interrupt_main_thread(signal.SIGINT, signal.SIGTERM)

    def _conclude_before_interrupt(self) -> State[Any] | None:
        """The engine takes an interrupted flow for crashed, unless its run has a final state."""
        flow_run = self._context.flow_run if self._context is not None else None
        if self._context is None or flow_run is None:
            return None
        flow_run.state = Cancelled(message=MESSAGE)
        self._call_hooks(self._context, flow_run.state)
        conclude(self.flow_run_id)
        return flow_run.state

    @staticmethod
    def _call_hooks(context: FlowRunContext, state: State[Any]) -> None:
        for hook in (context.flow.on_cancellation_hooks if context.flow is not None else None) or []:
            try:
                result: Any = hook(context.flow, context.flow_run, state)  # type: ignore[arg-type]
                if inspect.iscoroutine(result):
                    run_coro_as_sync(result)
            except Exception:
                logger.exception("a cancellation hook failed: %r", hook)


def conclude(flow_run_id: UUID) -> None:
    """Let a flow run that is Cancelling be Cancelled; one in any other state stays as it is."""
    _propose(flow_run_id, Cancelled(message=MESSAGE), only=StateType.CANCELLING)


def _propose(
    flow_run_id: UUID,
    state: State[Any],
    *,
    only: StateType | None = None,
    unless: tuple[StateType, ...] = (),
    force: bool = False,
) -> None:
    with get_client(sync_client=True, httpx_settings=OWN_CLIENT) as client:
        now = client.read_flow_run(flow_run_id).state
        if now is not None and now.type not in unless and only in (None, now.type):
            client.set_flow_run_state(flow_run_id, state, force=force)


def _context_of(flow_run_id: UUID) -> FlowRunContext | None:
    context = FlowRunContext.get()
    mine = context is not None and context.flow_run is not None and context.flow_run.id == flow_run_id
    return context if mine else None


def _asyncio_task() -> tuple[asyncio.AbstractEventLoop | None, asyncio.Task[Any] | None]:
    try:
        return asyncio.get_running_loop(), asyncio.current_task()
    except RuntimeError:
        return None, None
