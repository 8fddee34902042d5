"""State events of made-up task runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from executor_adapter import Job, JobStatus
from executor_adapter.prefect.mirror.events import FlowRunFacts, StateEvent, related_flow_run
from executor_adapter.prefect.mirror.timeline import JobHistory, Step
from executor_adapter.worker.facts import facts_of
from tests.waiting import PATIENCE

PENDING, RUNNING = JobStatus.PENDING, JobStatus.RUNNING
COMPLETED, FAILED = JobStatus.COMPLETED, JobStatus.FAILED


def event(
    status: JobStatus, at: float = 1_000_000.0, task_run_id: str | None = None, flow_run_id: str = "", error: str = ""
) -> StateEvent:
    """Return an event of a new task run, or of the given one."""
    flow = FlowRunFacts(flow_run_id, related_flow_run(flow_run_id, "name")) if flow_run_id else FlowRunFacts()
    history = JobHistory(Job(function=dict), task_run_id or str(uuid4()))
    history.add(Step(status, at, 1, facts_of(OSError(error)) if error else None, None))
    return history.next_event(flow)


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
