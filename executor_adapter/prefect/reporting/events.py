"""Sends events as Prefect's own engine does."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.worker import EventsWorker
from prefect.utilities.engine import emit_task_run_state_change_event

FLUSH_TIMEOUT = 2.0
"""Seconds for Prefect's events to be sent."""


def emit_pending_event(task: Task[..., Any], task_run: TaskRun) -> None:
    """Send the Pending event of a new task run, related to the flow run around the caller alone."""
    assert task_run.state is not None, "a new task run is Pending"
    # Prefect's events worker reads the flow run and the task run of an event from these contexts. Without them it uses
    # those that were around the first event of this process.
    of_flow: dict[str, Any] = {"flow_run": None}
    of_task: dict[str, Any] = {"task": task, "task_run": task_run, "persist_result": False}
    around = contextlib.nullcontext() if FlowRunContext.get() else FlowRunContext.model_construct(**of_flow)
    with around, TaskRunContext.model_construct(**_OTHER_FIELDS, **of_task):
        emit_task_run_state_change_event(task_run=task_run, initial_state=None, validated_state=task_run.state)


_OTHER_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("client", "input_keyset", "result_store", "start_time")),
    "log_prints": False,
    "parameters": {},
}
"""The other fields of a TaskRunContext. For each missing one, pydantic would look for a default, which is slow."""


def flush_events(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until the events of this process are sent, at most `timeout` seconds.

    For a process that is about to end by a signal, as Prefect ends a flow's process: queued events would be lost.
    """
    # `wait_until_empty` has no timeout, and an unreachable server must not hold up the end.
    waiting = threading.Thread(target=EventsWorker.instance().wait_until_empty, name="flush-events", daemon=True)
    waiting.start()
    waiting.join(timeout)
