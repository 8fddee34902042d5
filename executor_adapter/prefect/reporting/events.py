"""Events of Prefect's own, sent as it sends them."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.worker import EventsWorker
from prefect.utilities.engine import emit_task_run_state_change_event

FLUSH_SECONDS = 2.0


def emit_pending_event(task: Task[..., Any], task_run: TaskRun) -> None:
    """Send the event of a new task run, related to the flow run around the caller and to nothing else of his."""
    assert task_run.state is not None, "a new task run is Pending"
    # The worker that sends events takes the flow run and the task run they belong to from these contexts, and where
    # there is none, from whatever was around the first event of this process.
    of_flow: dict[str, Any] = {"flow_run": None}
    of_task: dict[str, Any] = {"task": task, "task_run": task_run, "persist_result": False}
    around = contextlib.nullcontext() if FlowRunContext.get() else FlowRunContext.model_construct(**of_flow)
    with around, TaskRunContext.model_construct(**_REST, **of_task):
        emit_task_run_state_change_event(task_run=task_run, initial_state=None, validated_state=task_run.state)


_REST: dict[str, Any] = {
    **dict.fromkeys(("client", "input_keyset", "result_store", "start_time")),
    "log_prints": False,
    "parameters": {},
}
"""The other fields of a TaskRunContext: for each that is missing pydantic looks for a default, which takes long."""


def current_flow_run() -> FlowRun | None:
    """The flow run around the caller."""
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def flush_events(timeout: float = FLUSH_SECONDS) -> None:
    """Wait until the events of this process are on their way, at most `timeout` seconds.

    For a process that is about to end by a signal, which is how Prefect ends one that was told to: what is queued then
    would be lost.
    """
    # It has no timeout of its own, and a server that is away must not hold up the end.
    waiting = threading.Thread(target=EventsWorker.instance().wait_until_empty, name="flush-events", daemon=True)
    waiting.start()
    waiting.join(timeout)
