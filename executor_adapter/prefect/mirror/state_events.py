"""The event by which a Prefect server learns that a task run has entered a state, as bytes ready to send.

The format is that of `prefect.utilities.engine.emit_task_run_state_change_event`, which every client of Prefect 3
speaks: the event `prefect.task-run.<name of the state>`, whose id becomes the state's id and whose `occurred` its
timestamp. The server's recorder takes what the payload says of the task run where that timestamp is newer than what it
has, and inserts each state once by its id: sending an event again is safe.

Written as text: there is one for each state of each of tens of thousands of jobs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, Protocol

from executor_adapter.job.ids import uuid7
from executor_adapter.job.text import storable
from executor_adapter.prefect.mirror.states import StateKind

TICK = 1e-6
"""Seconds: what the server's clock resolves. Two states of one task run are at least so far apart."""

MESSAGE_LENGTH = 10_000
"""Characters of a state's message: the server refuses events that are too large, and says so to nobody."""


@dataclass(slots=True, eq=False)
class StateEvent:
    """One event. `at`: seconds since the epoch; `body`: what is sent, JSON; `is_final`: nothing is to follow it."""

    task_run_id: str
    name: str
    at: float
    is_final: bool
    body: bytes
    job_id: str = ""
    """The job that the task run shows; of one that was read from the spool it is not known."""
    tellings: int = 1
    """How often it is told, this time included."""
    origin: Any = None
    """The file of the spool that it was read from."""

    @property
    def id(self) -> str:
        """That of the event, which is the state's too."""
        return str(json.loads(self.body)["id"])

    @classmethod
    def parse(cls, body: bytes, origin: Any = None) -> StateEvent:
        """The event of which `body` is what is sent.

        Raises:
            ValueError, KeyError: it is none.
        """
        told = json.loads(body)
        resource = told["resource"]
        task_run_id = resource["prefect.resource.id"].removeprefix("prefect.task-run.")
        name, at = resource["prefect.state-name"], datetime.fromisoformat(told["occurred"]).timestamp()
        return cls(task_run_id, name, at, is_final(resource["prefect.state-type"], name), body, origin=origin)

    def again(self, at: float) -> StateEvent:
        """The same state under a new id and with the time `at`: the server may have seen the old id, and lost it."""
        told = json.loads(self.body)
        told["id"], told["occurred"] = uuid7(), iso(at)
        told["resource"]["prefect.state-timestamp"] = told["occurred"]
        body = json.dumps(told, separators=(",", ":")).encode()
        return dataclasses.replace(self, at=at, body=body, tellings=self.tellings + 1)


FINAL_TYPES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})


def is_final(state_type: str, name: str) -> bool:
    """Whether a task run stays in such a state. One whose upstream failed does, though NotReady is of type PENDING."""
    return state_type in FINAL_TYPES or name == "NotReady"


class FlowRunFacts(NamedTuple):
    """What all events of a flow run's task runs share. The default is that of task runs outside a flow run."""

    related: str = ""
    """Resources that each event is related to, as JSON without the brackets."""
    tags: str = "[]"
    """Tags of the task runs, a JSON list."""
    run_count: int = 0
    """Which run of the flow run this is."""


class TaskRunFacts(Protocol):
    """What stays the same in a task run; all but the id as JSON."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def task_key(self) -> str: ...
    @property
    def dynamic_key(self) -> str: ...
    @property
    def policy(self) -> str: ...


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
    second, microsecond = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microsecond:06}+00:00"


@functools.lru_cache(maxsize=256)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def quoted(text: str) -> str:
    """The text as JSON that a server can store: it answers one that it cannot with an error for the whole request."""
    return encode_basestring_ascii(storable(text))


class ToldState(NamedTuple):
    """A state as events tell it; the last three as JSON."""

    id: str
    at: str
    type: str
    name: str
    message: str
    details: str
    data: str = "null"


NOTHING_BEFORE = ("null", "null")


def before(state_type: str, name: str, message: str = '""', details: str = "{}") -> tuple[str, str]:
    """The type of the state that a task run came from, and that state itself, as JSON; `message`, `details` are it."""
    kind = f'"{state_type}"'
    return kind, f'{{"type":{kind},"name":{quoted(name)},"message":{message},"state_details":{details}}}'


def event_body(
    run_id: str, run_name: str, run_count: int, state: ToldState, previous: tuple[str, str], related: str, task_run: str
) -> bytes:
    """The event, as it is sent. As JSON: `run_name`, `previous`, `task_run`, and without the brackets `related`."""
    name, (came_from, initial) = quoted(state.name), previous
    text = (
        f'{{"id":"{state.id}","occurred":"{state.at}","event":{quoted("prefect.task-run." + state.name)},"resource":{{'
        f'"prefect.resource.id":"prefect.task-run.{run_id}","prefect.resource.name":{run_name},'
        f'"prefect.run-count":"{run_count}","prefect.state-message":{state.message},"prefect.state-name":{name},'
        f'"prefect.state-timestamp":"{state.at}","prefect.state-type":"{state.type}","prefect.orchestration":"client"}},'
        f'"related":[{related}],"payload":{{"intended":{{"from":{came_from},"to":"{state.type}"}},'
        f'"initial_state":{initial},"validated_state":{{"type":"{state.type}","name":{name},"message":{state.message},'
        f'"state_details":{state.details},"data":{state.data}}},"task_run":{task_run}}}}}'
    )
    return text.encode()


def state_event(run: TaskRunFacts, change: Change, flow: FlowRunFacts, job_id: str = "") -> StateEvent:
    """The event of a task run's change."""
    (kind, name), at, count = change.kind, iso(change.at), change.run_count
    details = "{}" if change.scheduled is None else f'{{"scheduled_time":"{iso(change.scheduled)}"}}'
    state = ToldState(uuid7(), at, kind.value, name, quoted(change.message[:MESSAGE_LENGTH]), details)
    previous = NOTHING_BEFORE if change.previous is None else before(change.previous.type.value, change.previous.name)
    task_run = (
        f'{{"name":{run.name},"task_key":{run.task_key},"dynamic_key":{run.dynamic_key},'
        f'"empirical_policy":{run.policy},"tags":{flow.tags},"labels":{{}},"task_inputs":{{}},"run_count":{count},'
        f'"flow_run_run_count":{flow.run_count},{_times(change, at)}}}'
    )
    body = event_body(run.id, run.name, count, state, previous, flow.related, task_run)
    return StateEvent(run.id, name, change.at, is_final(kind.value, name), body, job_id)


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
