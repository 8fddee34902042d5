"""Waits until the Prefect server knows how every task run of a flow run ended; its mirror tells it what it lost.

The server answers before it has recorded an event, and drops events when its queue is full; an embedded server ends
with the flow. Left alone, task runs of a flow run that is over stay Pending or Running for ever.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext, TaskRunContext

from executor_adapter.prefect.mirror import flow_run_mirrors
from executor_adapter.prefect.mirror.report import MirrorReport
from executor_adapter.prefect.mirror.server_api import PAGE, ServerApi

logger = logging.getLogger("executor_adapter.prefect")

POLL_SECONDS = 0.25
_LIVE = [
    state.value for state in StateType if state.value in {"SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"}
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """What the server knew of a flow run's task runs when the wait was over."""

    flow_run_id: UUID
    recorded: int
    """Task runs of job tasks whose true final state the server has."""
    resent: int
    """Final states told once more, since the server had lost them."""
    missing: tuple[UUID, ...] = ()
    """Task runs of job tasks whose true final state the server does not have."""
    unfinished: tuple[UUID, ...] = ()
    """Other task runs of the flow run that the server has in a state that is not final."""

    @property
    def complete(self) -> bool:
        """Whether the server knows the final state of every task run."""
        return not self.missing and not self.unfinished

    def __str__(self) -> str:
        if self.complete:
            return f"the server knows the final state of every task run ({self.recorded} of job tasks)"
        ids = ", ".join(str(task_run_id) for task_run_id in [*self.missing, *self.unfinished][:10])
        return (
            f"the server does not know the final state of {len(self.missing)} task runs of job tasks"
            f" and of {len(self.unfinished)} others: {ids}"
        )


def wait_until_recorded(flow_run_id: UUID | str | None = None, timeout: float = 60.0) -> ReconcileReport:
    """Block until the server has every task run of the flow run in its true final state, at most `timeout` seconds.

    Called at the end of a flow, when its tasks are over; the flow run is the caller's where none is given. What the
    server lost of job tasks is told again. Of other tasks only what the server shows is known: they are waited for.
    The report says what is missing; it is logged as a warning too.

    Raises:
        RuntimeError: no flow run is given, and the caller is in none.
    """
    wanted, deadline = _flow_run_id(flow_run_id), time.monotonic() + timeout
    mirror = flow_run_mirrors.find(wanted)
    told = MirrorReport(jobs=0, recorded=0) if mirror is None else mirror.drain(timeout)
    with ServerApi.connected() as api:
        unfinished = _OtherTaskRuns(api, wanted).wait_until_over(deadline)
    report = ReconcileReport(
        flow_run_id=wanted,
        recorded=told.recorded,
        resent=told.resent,
        missing=() if mirror is None else tuple(map(UUID, (*told.missing, *mirror.unrecorded()))),
        unfinished=unfinished,
    )
    if not report.complete:
        logger.warning("after %.0f s %s", timeout, report)
    return report


def _flow_run_id(given: UUID | str | None) -> UUID:
    if given is not None:
        return given if isinstance(given, UUID) else UUID(given)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("wait_until_recorded() was called outside a flow run: give flow_run_id")
    return context.flow_run.id


class _OtherTaskRuns:
    """Those of a flow run that the server has in a state that is not final."""

    def __init__(self, api: ServerApi, flow_run_id: UUID) -> None:
        self._api = api
        self._of_flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))

    def wait_until_over(self, deadline: float) -> tuple[UUID, ...]:
        """Those that are left at the deadline (monotonic); a server that is away knows of none, and is asked again."""
        unfinished: tuple[UUID, ...] = ()
        pause = POLL_SECONDS
        while True:
            try:
                unfinished = self._alive()
                if not unfinished:
                    return ()
            except httpx.HTTPError as error:
                logger.debug("the server cannot be asked: %r", error)
            left = deadline - time.monotonic()
            if left <= 0:
                return unfinished
            time.sleep(min(pause, left))
            pause = min(1.0, pause * 1.5)

    def _alive(self) -> tuple[UUID, ...]:
        """But for the caller's own, and those never to start."""
        caller = TaskRunContext.get()
        own = caller.task_run.id if caller is not None else None
        alive = TaskRunFilter.model_validate({"state": {"type": {"any_": _LIVE}}})
        found = self._api.client.read_task_runs(flow_run_filter=self._of_flow_run, task_run_filter=alive, limit=PAGE)
        return tuple(run.id for run in found if run.state_name != "NotReady" and run.id != own)
