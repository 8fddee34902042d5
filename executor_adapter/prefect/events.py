"""Tells the Prefect server of a task run's state from outside its engine, and remembers what the engines told it."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events.worker import EventsWorker
from prefect.results import ResultRecord  # type: ignore[attr-defined]  # imported there, and meant to be
from prefect.utilities.engine import emit_task_run_state_change_event

KEPT_FLOW_RUNS = 50
"""Final states are remembered for so many flow runs, since one process may serve flows for months."""

FLUSH_SECONDS = 2.0


def emit_state(
    task: Task[..., Any],
    task_run: TaskRun,
    state: State[Any],
    *,
    flow_run: FlowRun | None,
    persist_result: bool = False,
) -> None:
    """Send the event of `task_run` entering `state`, related to `flow_run` and to nothing of the caller's own.

    `persist_result`: the state's data is the record of a persisted result, to be known to the server.
    """
    # The worker that sends events takes the flow run and the task run they belong to from these contexts, and where
    # there is none, from whatever was around the first event of this process.
    of_task: dict[str, Any] = {"task": task, "task_run": task_run, "persist_result": persist_result}
    with _within(flow_run), TaskRunContext.model_construct(**_REST, **of_task):
        emit_task_run_state_change_event(task_run=task_run, initial_state=None, validated_state=state)


_REST: dict[str, Any] = {
    **dict.fromkeys(("client", "input_keyset", "result_store", "start_time")),
    "log_prints": False,
    "parameters": {},
}
"""The other fields of a TaskRunContext: for each that is missing pydantic looks for a default, which takes long."""


def _within(flow_run: FlowRun | None) -> AbstractContextManager[object]:
    context = FlowRunContext.get()
    if context is not None and context.flow_run is flow_run:
        return contextlib.nullcontext()
    of_flow: dict[str, Any] = {"flow_run": flow_run}
    return FlowRunContext.model_construct(**of_flow)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalState:
    """How a task run ended, and all that is needed to tell the server again."""

    task: Task[..., Any]
    task_run: TaskRun
    state: State[Any]
    flow_run: FlowRun | None
    persist_result: bool

    def matches(self, recorded: TaskRun) -> bool:
        """Whether the server knows it so. A transaction may have rolled a completed task run back since."""
        return recorded.state_type is self.state.type and recorded.state_name in {self.state.name, "RolledBack"}


class FinalStates:
    """The final states that engines of this process set, by flow run. Safe to use from any thread."""

    def __init__(self, kept_flow_runs: int = KEPT_FLOW_RUNS) -> None:
        self._by_flow_run: OrderedDict[UUID, dict[UUID, FinalState]] = OrderedDict()
        self._kept = kept_flow_runs
        self._lock = threading.Lock()

    def note(self, task: Task[..., Any], task_run: TaskRun, state: State[Any], *, persist_result: bool) -> None:
        """Remember that `task_run` ended in `state`; called in its context.

        A task run outside a flow run is nobody's to wait for.
        """
        if task_run.flow_run_id is None:
            return
        final = FinalState(
            task=task,
            task_run=task_run.model_copy(update={"state": None}),
            state=state.model_copy(update={"data": _without_value(state.data), "timestamp": state.timestamp}),
            flow_run=current_flow_run(),
            persist_result=persist_result,
        )
        with self._lock:
            runs = self._by_flow_run.setdefault(task_run.flow_run_id, {})
            runs[task_run.id] = final
            self._by_flow_run.move_to_end(task_run.flow_run_id)
            while len(self._by_flow_run) > self._kept:
                self._by_flow_run.popitem(last=False)

    def of(self, flow_run_id: UUID) -> dict[UUID, FinalState]:
        """A copy of what is remembered for a flow run, the oldest first."""
        with self._lock:
            return dict(self._by_flow_run.get(flow_run_id, {}))

    def forget(self, flow_run_id: UUID, task_run_ids: set[UUID]) -> None:
        """Drop what the server is known to have recorded."""
        with self._lock:
            runs = self._by_flow_run.get(flow_run_id, {})
            for task_run_id in task_run_ids:
                runs.pop(task_run_id, None)


def _without_value(data: Any) -> Any:
    """The record of a persisted result without the result, which may be large: the event carries the record alone."""
    return data.model_copy(update={"result": None}) if isinstance(data, ResultRecord) else None


final_states = FinalStates()
