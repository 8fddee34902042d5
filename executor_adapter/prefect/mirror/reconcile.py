"""Waits until the Prefect server has recorded the final state of every task run of a flow run.

The server answers before it has recorded an event, and drops events when its queue is full; an embedded server ends
with the flow. Without this wait, task runs of a finished flow run could stay Pending or Running forever. The flow
run's mirror sends again what the server has lost.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from uuid import UUID

import httpx
from prefect.context import TaskRunContext

from executor_adapter.prefect.mirror import flow_run_mirrors
from executor_adapter.prefect.mirror.flow_run_facts import current_flow_run_id
from executor_adapter.prefect.mirror.report import MirrorReport
from executor_adapter.prefect.mirror.server_api import ServerApi
from executor_adapter.prefect.mirror.state_events import UNFINISHED_TYPES

logger = logging.getLogger("executor_adapter.prefect")

POLL_INTERVAL = 0.25
MAX_POLL_INTERVAL = 1.0
"""Seconds between two requests: the interval grows with each one."""

POLL_GROWTH_FACTOR = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """Describes what the server had recorded of a flow run's task runs when the wait ended."""

    flow_run_id: UUID
    recorded: int
    """Task runs of job tasks whose true final state the server has."""
    resent: int
    """Final states that were sent again, because the server had lost them."""
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

    Call it at the end of a flow, when its tasks have finished; without an id it waits for the caller's flow run. States
    of job tasks that the server has lost are sent again. Of other tasks only the server's record is known, so they are
    waited for. The report lists what is missing, which is logged as a warning too.

    Raises:
        RuntimeError: no flow run is given, and the caller is not in one.
    """
    wanted, deadline = _flow_run_id(flow_run_id), time.monotonic() + timeout
    mirror = flow_run_mirrors.find(wanted)
    mirrored = MirrorReport(jobs=0, recorded=0) if mirror is None else mirror.drain(timeout)
    with ServerApi.connected() as api:
        unfinished = _wait_for_others(api, wanted, deadline)
    report = ReconcileReport(
        flow_run_id=wanted,
        recorded=mirrored.recorded,
        resent=mirrored.resent,
        missing=() if mirror is None else tuple(map(UUID, (*mirrored.missing, *mirror.unrecorded()))),
        unfinished=unfinished,
    )
    if not report.complete:
        logger.warning("after %.0f s: %s", timeout, report)
    return report


def _flow_run_id(given: UUID | str | None) -> UUID:
    if given is not None:
        return given if isinstance(given, UUID) else UUID(given)
    current = current_flow_run_id()
    if current is None:
        raise RuntimeError("wait_until_recorded() was called outside a flow run: give flow_run_id")
    return current


def _wait_for_others(api: ServerApi, flow_run_id: UUID, deadline: float) -> tuple[UUID, ...]:
    """Wait until no task run of the flow run is unfinished, and return those that are at the monotonic time `deadline`.

    While the server cannot be reached, none is known to be unfinished, and it is asked again.
    """
    unfinished: tuple[UUID, ...] = ()
    pause = POLL_INTERVAL
    while True:
        try:
            unfinished = _unfinished(api, flow_run_id)
            if not unfinished:
                return ()
        except httpx.HTTPError as error:
            logger.debug("cannot ask the server for unfinished task runs: %r", error)
        left = deadline - time.monotonic()
        if left <= 0:
            return unfinished
        time.sleep(min(pause, left))
        pause = min(MAX_POLL_INTERVAL, pause * POLL_GROWTH_FACTOR)


def _unfinished(api: ServerApi, flow_run_id: UUID) -> tuple[UUID, ...]:
    """Return the unfinished task runs, without the caller's own and those that will never start."""
    caller = TaskRunContext.get()
    own = caller.task_run.id if caller is not None else None
    found = api.task_runs({"flow_run_id": {"any_": [str(flow_run_id)]}, "state": {"type": {"any_": UNFINISHED_TYPES}}})
    return tuple(UUID(run["id"]) for run in found if run["state_name"] != "NotReady" and run["id"] != str(own))
