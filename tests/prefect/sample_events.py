"""State events of made-up task runs."""

from __future__ import annotations

from typing import NamedTuple
from uuid import uuid4

from prefect.client.schemas.objects import StateType

from executor_adapter.prefect.mirror.state_events import (
    FlowRunFacts,
    StateChange,
    StateEvent,
    related_resource,
    state_event,
)
from executor_adapter.prefect.mirror.states import StateKind

PENDING, COMPLETED = StateKind(StateType.PENDING, "Pending"), StateKind(StateType.COMPLETED, "Completed")
FAILED = StateKind(StateType.FAILED, "Failed")


class Facts(NamedTuple):
    """Facts of a task run. All but the id are JSON."""

    id: str
    name: str = '"name"'
    task_key: str = '"key"'
    dynamic_key: str = '"job"'
    policy: str = "{}"


def event(
    kind: StateKind, at: float = 1_000_000.0, task_run_id: str | None = None, flow_run_id: str = ""
) -> StateEvent:
    """Return an event of a new task run, or of the given one."""
    flow = (
        FlowRunFacts(flow_run_id, related_resource("flow-run", flow_run_id, "name")) if flow_run_id else FlowRunFacts()
    )
    return state_event(Facts(task_run_id or str(uuid4())), StateChange(kind, at), flow)


class FakeSpoolFile:
    """A spool file that counts its recorded events."""

    def __init__(self) -> None:
        self.recorded = 0

    def mark_recorded(self) -> None:
        self.recorded += 1

    def release(self) -> None: ...


def spooled_event(kind: StateKind, at: float = 1_000_000.0, flow_run_id: str = "") -> StateEvent:
    """Return an event as it is read from a spool file of its own."""
    spooled = StateEvent.parse(event(kind, at, flow_run_id=flow_run_id).line)
    spooled.spool_file = FakeSpoolFile()
    return spooled


def recorded_in_file(spooled: StateEvent) -> int:
    """Return how many events of the event's spool file are recorded."""
    assert isinstance(spooled.spool_file, FakeSpoolFile)
    return spooled.spool_file.recorded
