"""State events of made-up task runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
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
from tests.waiting import PATIENCE

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


def jobs_in(outbox: Path) -> list[str]:
    """Return the jobs whose final states are in the file of an outbox, whoever holds them."""
    if not outbox.exists():
        return []
    with closing(sqlite3.connect(outbox, timeout=PATIENCE)) as database:
        try:
            found = database.execute("SELECT job_id FROM event WHERE is_final").fetchall()
        except sqlite3.OperationalError:  # It is being made.
            return []
    return [job_id.decode() for (job_id,) in found]


def outbox_of(home: Path) -> Path:
    """Return the outbox of a PREFECT_HOME."""
    return home / "executor-adapter" / "outbox.db"
