"""The event by which a Prefect server learns that a task run has entered a state, as bytes ready to send.

The format is that of `prefect.utilities.engine.emit_task_run_state_change_event`, which every client of Prefect 3
speaks: the event `prefect.task-run.<name of the state>`, whose id becomes the state's id and whose `occurred` its
timestamp. The server's recorder takes what the payload says of the task run where that timestamp is newer than what it
has, and inserts each state once by its id: sending an event again is safe.

Written as one f-string: there is one for each state of each of tens of thousands of jobs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from executor_adapter.job import uuid7
from executor_adapter.prefect.states import StateKind

TICK = 1e-6
"""Seconds: what the server's clock resolves. Two states of one task run are at least so far apart."""

MESSAGE_LENGTH = 10_000
"""Characters of a state's message: the server refuses events that are too large, and says so to nobody."""


@dataclass(slots=True)
class StateEvent:
    """One event. `at`: seconds since the epoch; `body`: what is sent, JSON."""

    task_run_id: str
    name: str
    at: float
    is_final: bool
    body: bytes
    tellings: int = 1
    """How often it is told, this time included."""
    origin: Any = None
    """The file of the spool that it was read from."""

    @classmethod
    def parse(cls, body: bytes, origin: Any = None) -> StateEvent:
        """The event of which `body` is what is sent.

        Raises:
            ValueError, KeyError: it is none.
        """
        told = json.loads(body)
        resource = told["resource"]
        task_run_id = resource["prefect.resource.id"].removeprefix("prefect.task-run.")
        kind, at = resource["prefect.state-type"], datetime.fromisoformat(told["occurred"]).timestamp()
        return cls(task_run_id, resource["prefect.state-name"], at, kind in FINAL_TYPES, body, origin=origin)

    def again(self, at: float) -> StateEvent:
        """The same state under a new id and with the time `at`: the server may have seen the old id, and lost it."""
        told = json.loads(self.body)
        told["id"], told["occurred"] = uuid7(), iso(at)
        told["resource"]["prefect.state-timestamp"] = told["occurred"]
        body = json.dumps(told, separators=(",", ":")).encode()
        return StateEvent(self.task_run_id, self.name, at, self.is_final, body, self.tellings + 1, self.origin)


FINAL_TYPES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})


class FlowRunFacts(NamedTuple):
    """What all events of a flow run's task runs share. The default is that of task runs outside a flow run."""

    related: str = ""
    """Resources that each event is related to, as JSON without the brackets."""
    tags: str = "[]"
    """Tags of the task runs, a JSON list."""
    run_count: int = 0
    """Which run of the flow run this is."""


class TaskRunFacts(NamedTuple):
    """What stays the same in a task run; the last four as JSON."""

    id: str
    name: str
    task_key: str
    dynamic_key: str
    policy: str


class Change(NamedTuple):
    """A task run enters a state; what is known of it then. Times in seconds since the epoch."""

    kind: StateKind
    at: float
    previous: StateKind | None = None
    message: str = ""
    scheduled: float | None = None
    """When the next attempt is due."""
    run_count: int = 0
    expected: float = 0.0
    start: float | None = None
    end: float | None = None
    total: float = 0.0
    """Seconds that its attempts have run."""


def iso(at: float) -> str:
    """Seconds since the epoch as the server writes times."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def state_event(run: TaskRunFacts, change: Change, flow: FlowRunFacts) -> StateEvent:
    """The event of a task run's change."""
    (kind, name), at, count = change.kind, iso(change.at), change.run_count
    state_type, message = kind.value, quoted(change.message[:MESSAGE_LENGTH])
    details = "" if change.scheduled is None else f'"scheduled_time":"{iso(change.scheduled)}"'
    came_from, initial = _previous(change.previous)
    body = (
        f'{{"id":"{uuid7()}","occurred":"{at}","event":"prefect.task-run.{name}","resource":{{'
        f'"prefect.resource.id":"prefect.task-run.{run.id}","prefect.resource.name":{run.name},'
        f'"prefect.run-count":"{count}","prefect.state-message":{message},"prefect.state-name":"{name}",'
        f'"prefect.state-timestamp":"{at}","prefect.state-type":"{state_type}","prefect.orchestration":"client"}},'
        f'"related":[{flow.related}],"payload":{{"intended":{{"from":{came_from},"to":"{state_type}"}},'
        f'"initial_state":{initial},"validated_state":{{"type":"{state_type}","name":"{name}","message":{message},'
        f'"state_details":{{{details}}},"data":null}},"task_run":{{"name":{run.name},"task_key":{run.task_key},'
        f'"dynamic_key":{run.dynamic_key},"empirical_policy":{run.policy},"tags":{flow.tags},"labels":{{}},'
        f'"task_inputs":{{}},"run_count":{count},"flow_run_run_count":{flow.run_count},{_times(change, at)}}}}}}}'
    )
    return StateEvent(run.id, name, change.at, state_type in FINAL_TYPES, body.encode())


def _previous(kind: StateKind | None) -> tuple[str, str]:
    """The type of the state before, and the state itself, as JSON."""
    if kind is None:
        return "null", "null"
    came_from = f'"{kind.type.value}"'
    return came_from, f'{{"type":{came_from},"name":"{kind.name}","message":"","state_details":{{}}}}'


def _times(change: Change, at: str) -> str:
    expected, total, start = iso(change.expected), change.total, change.start
    told = f'"expected_start_time":"{expected}","total_run_time":{total:.6f}'
    if start is not None:
        told += f',"start_time":"{at if start == change.at else iso(start)}"'
    return told if change.end is None else f'{told},"end_time":"{at if change.end == change.at else iso(change.end)}"'


def resource(kind: str, object_id: object, name: str) -> str:
    """A related resource, as JSON; its role is its kind."""
    labels = {
        "prefect.resource.id": f"prefect.{kind}.{object_id}",
        "prefect.resource.role": kind,
        "prefect.resource.name": name,
    }
    return json.dumps(labels)
