"""What the task run of one of Prefect's engines has been through, told in the words of Prefect's own engines.

The event is the one of `prefect.utilities.engine.emit_task_run_state_change_event`, with the state's id and time.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from prefect.client.schemas.objects import State, TaskRun
from prefect.results import ResultRecord, should_persist_result  # type: ignore[attr-defined]  # meant to be used

from executor_adapter.job.text import storable
from executor_adapter.prefect.mirror.history import TaskRunHistory
from executor_adapter.prefect.mirror.state_events import (
    MESSAGE_LENGTH,
    NOTHING_BEFORE,
    FlowRunFacts,
    StateEvent,
    ToldState,
    before,
    event_body,
    is_final,
    quoted,
)

_NOT_TOLD = {
    *{"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"},
    *{"estimated_start_time_delta", "estimated_run_time"},  # the server's own
}
_IDS = {"flow_run_id", "task_run_id"}


class EngineChange(NamedTuple):
    """A task run enters a state; what is known of it then. The last two as JSON."""

    at: float
    state: ToldState
    previous: tuple[str, str]
    run_count: int
    run_name: str
    task_run: str

    @property
    def is_final(self) -> bool:
        """Whether nothing is to follow it."""
        return is_final(self.state.type, self.state.name)


def engine_change(task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> EngineChange:
    """Note that `task_run`, as it is now, enters `state`; in its context, which says whether results are persisted."""
    told = ToldState(
        str(state.id),
        state.timestamp.isoformat(),
        state.type.value,
        state.name or "",
        _message(state),
        _details(state),
        _data(state),
    )
    return EngineChange(
        at=state.timestamp.timestamp(),
        state=told,
        previous=NOTHING_BEFORE if previous is None else _before(previous),
        run_count=task_run.run_count,
        run_name=quoted(task_run.name),
        task_run=_shown(task_run).model_dump_json(exclude_none=True, exclude=_NOT_TOLD),
    )


def _shown(task_run: TaskRun) -> TaskRun:
    name = storable(task_run.name)
    return task_run if name == task_run.name else task_run.model_copy(update={"name": name})


def _before(state: State[Any]) -> tuple[str, str]:
    return before(state.type.value, state.name or "", _message(state), _details(state))


def _message(state: State[Any]) -> str:
    return quoted((state.message or "")[:MESSAGE_LENGTH])


def _details(state: State[Any]) -> str:
    return state.state_details.model_dump_json(exclude_none=True, exclude_unset=True, exclude=_IDS)


def _data(state: State[Any]) -> str:
    """Where the result is, if it is persisted."""
    data: Any = state.data
    return data.metadata.model_dump_json() if isinstance(data, ResultRecord) and should_persist_result() else "null"


class EngineHistory(TaskRunHistory[EngineChange]):
    """The changes of an engine's task run that are not sent yet."""

    __slots__ = ("_tags",)

    def __init__(self, task_run: TaskRun) -> None:
        super().__init__(str(task_run.id))  # its job's id is the task run's
        self._tags = [
            json.dumps({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})
            for tag in sorted(task_run.tags)
        ]

    def add(self, step: EngineChange) -> None:
        """Note one more change, to be told."""
        self.unsent += (step,)
        self.is_over = self.is_over or step.is_final

    def pass_over(self, step: EngineChange) -> None:
        """Each change says all by itself."""

    def tell(self, step: EngineChange, flow: FlowRunFacts) -> StateEvent:
        """That of a change."""
        own = [tag for tag in self._tags if tag not in flow.related]
        related = ",".join([flow.related, *own] if flow.related else own)
        body = event_body(
            self.job_id,
            step.run_name,
            step.run_count,
            step.state,
            step.previous,
            related,
            step.task_run,
        )
        return StateEvent(self.job_id, step.state.name, step.at, step.is_final, body, self.job_id)
