"""The history of a task run that one of Prefect's engines drives, as events with all that Prefect's engines send.

The event is the one of `prefect.utilities.engine.emit_task_run_state_change_event`, with the state's own id and time.
"""

from __future__ import annotations

import json
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.results import ResultRecord, should_persist_result  # type: ignore[attr-defined]  # meant to be used

from executor_adapter.job import storable
from executor_adapter.prefect.mirror.history import TaskRunHistory
from executor_adapter.prefect.mirror.state_events import (
    MAX_MESSAGE_LENGTH,
    NO_PREVIOUS_STATE,
    Change,
    FlowRunFacts,
    StateFields,
    previous_state,
    quoted,
)

_UNSENT_FIELDS = {
    *{"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"},
    *{"estimated_start_time_delta", "estimated_run_time"},  # The server computes these.
}
_ID_FIELDS = {"flow_run_id", "task_run_id"}


def engine_change(task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> Change:
    """Record that `task_run`, as it is now, enters `state`.

    Call it in the task run's context, which decides whether results are persisted.
    """
    fields = StateFields(
        str(state.id),
        state.timestamp.isoformat(),
        state.type.value,
        state.name or "",
        _message(state),
        _details(state),
        _data(state),
    )
    return Change(
        at=state.timestamp.timestamp(),
        state=fields,
        previous=NO_PREVIOUS_STATE if previous is None else _previous(previous),
        run_count=task_run.run_count,
        run_name=quoted(task_run.name),
        task_run=_with_storable_name(task_run).model_dump_json(exclude_none=True, exclude=_UNSENT_FIELDS),
    )


def _with_storable_name(task_run: TaskRun) -> TaskRun:
    name = storable(task_run.name)
    return task_run if name == task_run.name else task_run.model_copy(update={"name": name})


def _previous(state: State[Any]) -> tuple[str, str]:
    return previous_state(state.type.value, state.name or "", _message(state), _details(state))


def _message(state: State[Any]) -> str:
    return quoted((state.message or "")[:MAX_MESSAGE_LENGTH])


def _details(state: State[Any]) -> str:
    return state.state_details.model_dump_json(exclude_none=True, exclude_unset=True, exclude=_ID_FIELDS)


def _data(state: State[Any]) -> str:
    """Return where the result is stored, if it is persisted, as JSON."""
    data: Any = state.data
    return data.metadata.model_dump_json() if isinstance(data, ResultRecord) and should_persist_result() else "null"


class EngineHistory(TaskRunHistory[Change]):
    """The unsent state changes of a task run that an engine drives."""

    __slots__ = ("_tags",)

    def __init__(self, task_run: TaskRun) -> None:
        super().__init__(str(task_run.id), str(task_run.id))  # The job's id is the task run's.
        self._tags = [
            json.dumps({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})
            for tag in sorted(task_run.tags)
        ]

    def add(self, step: Change) -> None:
        """Append a state change. A finished task run stays finished when a transaction rolls it back."""
        self.unsent += (step,)
        self.is_finished = self.is_finished or step.is_final

    def skip(self, step: Change) -> None:
        """Do nothing: each change is complete by itself."""

    def change_of(self, step: Change, flow: FlowRunFacts) -> Change:
        """Return the change itself."""
        return step

    def related(self, flow: FlowRunFacts) -> str:
        """Return what all of the flow run are related to, and the task run's own tags."""
        own = [tag for tag in self._tags if tag not in flow.related]
        return ",".join([flow.related, *own] if flow.related else own)
