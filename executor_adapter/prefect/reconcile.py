"""Waits until the Prefect server knows how every task run of a flow run ended, and tells it again what it lost.

The server answers before it has recorded an event, and drops events when its queue is full; an embedded server ends
with the flow. Left alone, task runs of a flow run that is over stay Pending or Running for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.context import FlowRunContext, TaskRunContext

from executor_adapter.prefect.events import final_states
from executor_adapter.prefect.retelling import tell_again
from executor_adapter.prefect.server_api import PAGE, ServerApi

logger = logging.getLogger("executor_adapter.prefect")

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 5.0
"""How long the server may show no progress before what it does not know counts as lost."""

_LIVE = [
    state.value for state in StateType if state.value in {"SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"}
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """What the server knew of a flow run's task runs when the wait was over."""

    flow_run_id: UUID
    recorded: int
    """Task runs of job tasks whose true final state the server has."""
    emitted_again: int
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
    wanted = _flow_run_id(flow_run_id)
    with ServerApi.connected() as api:
        report = _Reconciliation(api, wanted, time.monotonic() + timeout).run()
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


class _Reconciliation:
    """One wait. It looks at the oldest unconfirmed task runs first, a page at a time."""

    def __init__(self, api: ServerApi, flow_run_id: UUID, deadline: float) -> None:
        self._api = api
        self._flow_run_id = flow_run_id
        self._of_flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        self._deadline = deadline
        self._unconfirmed = final_states.of(flow_run_id)
        self._expected = len(self._unconfirmed)
        self._emitted_again = 0
        self._unfinished: tuple[UUID, ...] = ()
        self._seen: Any = None
        self._patient_until = time.monotonic() + PATIENCE_SECONDS

    def run(self) -> ReconcileReport:
        pause = POLL_SECONDS
        while not self._look() and time.monotonic() < self._deadline:
            time.sleep(min(pause, max(0.0, self._deadline - time.monotonic())))
            pause = min(1.0, pause * 1.5)
        return ReconcileReport(
            flow_run_id=self._flow_run_id,
            recorded=self._expected - len(self._unconfirmed),
            emitted_again=self._emitted_again,
            missing=tuple(self._unconfirmed),
            unfinished=self._unfinished,
        )

    def _look(self) -> bool:
        """Whether the server knows all; a server that is away knows nothing, and is asked again."""
        try:
            while self._confirm_page():
                if not self._unconfirmed:
                    break
            if self._unconfirmed:
                self._emit_what_is_lost()
                return False
            self._unfinished = tuple(self._others_that_live())
            return not self._unfinished
        except httpx.HTTPError as error:
            logger.debug("the server cannot be asked: %r", error)
            return False

    def _confirm_page(self) -> bool:
        """Confirm what can be of the oldest page; whether all of it was."""
        page = list(self._unconfirmed)[:PAGE]
        return not page or self._confirm(page)

    def _confirm_all(self) -> None:
        ids = list(self._unconfirmed)
        for start in range(0, len(ids), PAGE):
            self._confirm(ids[start : start + PAGE])

    def _confirm(self, page: list[UUID]) -> bool:
        recorded = self._read(TaskRunFilter(id=TaskRunFilterId(any_=page)))
        confirmed = {run.id for run in recorded if self._unconfirmed[run.id].matches(run)}
        final_states.forget(self._flow_run_id, confirmed)
        for task_run_id in confirmed:
            del self._unconfirmed[task_run_id]
        return len(confirmed) == len(page)

    def _emit_what_is_lost(self) -> None:
        """Tell the server again of all that it does not have, once it has shown no progress for some time."""
        seen = (len(self._unconfirmed), self._count({}), self._count({"state": {"type": {"any_": _LIVE}}}))
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._patient_until = seen, now + PATIENCE_SECONDS
        elif now >= self._patient_until:
            self._confirm_all()
            self._emitted_again += tell_again(self._unconfirmed.values(), self._api, self._deadline)
            self._patient_until = time.monotonic() + PATIENCE_SECONDS

    def _others_that_live(self) -> Iterable[UUID]:
        """Task runs that the server has in a state that is not final, but for the caller's and those never to start."""
        caller = TaskRunContext.get()
        own = caller.task_run.id if caller is not None else None
        alive = TaskRunFilter.model_validate({"state": {"type": {"any_": _LIVE}}})
        return [run.id for run in self._read(alive) if run.state_name != "NotReady" and run.id != own]

    def _read(self, task_run_filter: TaskRunFilter) -> list[TaskRun]:
        return self._api.client.read_task_runs(
            flow_run_filter=self._of_flow_run, task_run_filter=task_run_filter, limit=PAGE
        )

    def _count(self, task_runs: dict[str, Any]) -> int:
        body = {"flow_runs": self._of_flow_run.model_dump(mode="json", exclude_none=True), "task_runs": task_runs}
        return int(self._api.client.request("POST", "/task_runs/count", json=body).json())
