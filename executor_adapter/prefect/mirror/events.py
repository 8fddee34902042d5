"""Builds the event that reports a task run's new state to a Prefect server, as bytes ready to send.

The format is that of `prefect.utilities.engine.emit_task_run_state_change_event`, which every Prefect 3 client uses:
the event `prefect.task-run.<name of the state>`, whose id becomes the state's id and whose `occurred` becomes its
timestamp. The server's recorder updates the task run from the payload where that timestamp is newer than the recorded
one, and inserts each state once by its id. So sending an event again is safe; but it fails, with all that it records
together, for two states of one task run that have one time and two ids.

The JSON is written as text to save time: there is an event for each state of tens of thousands of jobs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import multiprocessing
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import NamedTuple
from uuid import UUID

import prefect.context
from prefect.context import FlowRunContext, TagsContext
from prefect.settings import Settings, get_current_settings

from executor_adapter.executor import sentinel_client
from executor_adapter.job import storable

logger = logging.getLogger("executor_adapter.prefect")

CLOCK_RESOLUTION_SECONDS = 1e-6
"""Resolution of the server's timestamps: two states of one task run are at least this far apart."""

CHANCE_SENDS = 3
"""A state that the server has lost this often is a suspect: something other than chance may be the cause.

With 2, a server that is killed twice takes four times as long to get 5,000 states back."""

MAX_MESSAGE_LENGTH = 10_000
"""Characters of a state's message. The server drops an event that is too large without telling the sender."""


@dataclass(slots=True, eq=False)
class StateEvent:
    """One state event of one task run.

    `at` is in seconds since the epoch, `body` is the JSON that is sent, and `is_final` is True if no state follows.
    """

    task_run_id: str
    name: str
    at: float
    is_final: bool
    body: bytes
    job_id: str = ""
    """The job that the task run shows."""
    send_count: int = 1
    """The number of times that the state is sent, this time included."""
    row: int | None = None
    """Its number in the outbox's file; None if it is in memory alone."""
    is_inherited: bool = False
    """Whether another mirror has left it in the outbox's file."""
    flow_run_id: str = ""
    """The flow run of the task run; empty outside flow runs."""
    fault_count: int = 0
    """How often the server has rejected it, and accepted another one."""

    @property
    def id(self) -> str:
        """The id of the event, which is the state's id too."""
        return str(json.loads(self.body)["id"])

    @property
    def is_suspect(self) -> bool:
        """Whether the server may lose with it all that it records together."""
        return self.send_count > CHANCE_SENDS

    def again(self, at: float) -> StateEvent:
        """Return the same state to be sent again, with the time `at`; with another time, it has another id."""
        body = self.body
        if at != self.at:
            fields = json.loads(body)
            fields["id"], fields["occurred"] = state_id(self.task_run_id, at), iso(at)
            fields["resource"]["prefect.state-timestamp"] = fields["occurred"]
            body = json.dumps(fields, separators=(",", ":")).encode()
        return dataclasses.replace(self, at=at, body=body, send_count=self.send_count + 1, fault_count=0)


FINAL_TYPES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
UNFINISHED_TYPES = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")


def is_final(state_type: str, name: str) -> bool:
    """Return whether no state follows this one. NotReady is final too: an upstream task failed."""
    return state_type in FINAL_TYPES or name == "NotReady"


class FlowRunFacts(NamedTuple):
    """Facts that all events of a flow run's task runs share. The defaults stand for task runs without a flow run."""

    id: str = ""
    """The id of the flow run."""
    related: str = ""
    """The resources that each event is related to: the items of a JSON list, without its brackets."""
    tags: str = "[]"
    """Tags of the task runs, as a JSON list."""
    run_count: int = 0
    """Number of the flow run's current run, which grows when the flow run is retried."""


def iso(at: float) -> str:
    """Return seconds since the epoch in the server's format for times."""
    second, microsecond = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microsecond:06}+00:00"


@functools.lru_cache(maxsize=256)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def state_id(task_run_id: str, at: float) -> str:
    """Return the id of the state that a task run enters at that time, so that all who report it send one event.

    It is a UUID of version 7: the time in microseconds, then the end of the task run's id.
    """
    milliseconds, microseconds = divmod(round(at * 1_000_000), 1_000)
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{microseconds:03x}-{task_run_id[19:]}"


def quoted(text: str) -> str:
    """Return the text as JSON that a server can store.

    A text that it cannot store would make the server refuse the whole request.
    """
    return encode_basestring_ascii(storable(text))


_ESCAPE = re.compile(r"\\(?:(ud[89ab]..\\ud[c-f]..|(?!u0000|ud[89a-f]).)|u....)")
"""An escape of JSON, with a group for one that a database can store, a pair of surrogates for instance."""

NO_PREVIOUS_STATE = ("null", "null")


def previous_state(state_type: str, name: str, message: str = '""', details: str = "{}") -> tuple[str, str]:
    """Return the type of the state that a task run leaves, and that state itself, both as JSON.

    `message` and `details` are JSON already.
    """
    kind = f'"{state_type}"'
    return kind, f'{{"type":{kind},"name":{quoted(name)},"message":{message},"state_details":{details}}}'


class Change(NamedTuple):
    """A task run's entry into a state, with the task run as it was then: what an event is made of."""

    id: str
    """That of the state, as its type, name and the next two are the state's."""
    at: float
    """In seconds since the epoch."""
    type: str
    name: str
    message: str
    """JSON, as all that follows without a type of its own."""
    details: str
    previous: tuple[str, str]
    """What `previous_state` returns."""
    run_count: int
    run_name: str
    task_run: str
    data: str = "null"
    """The result that the state has."""

    @property
    def is_final(self) -> bool:
        """Whether no state follows this one."""
        return is_final(self.type, self.name)


def event_body(run_id: str, change: Change, related: str) -> bytes:
    """Return the event as it is sent; `related` holds the items of a JSON list, without its brackets.

    What no database stores, as the character 0 in a tag, is replaced: for one such event a server may lose many.
    """
    kind, at, name, (came_from, initial) = change.type, iso(change.at), quoted(change.name), change.previous
    text = (
        f'{{"id":"{change.id}","occurred":"{at}","event":{quoted("prefect.task-run." + change.name)},"resource":{{'
        f'"prefect.resource.id":"prefect.task-run.{run_id}","prefect.resource.name":{change.run_name},'
        f'"prefect.run-count":"{change.run_count}","prefect.state-message":{change.message},'
        f'"prefect.state-name":{name},"prefect.state-timestamp":"{at}","prefect.state-type":"{kind}",'
        f'"prefect.orchestration":"client"}},"related":[{related}],"payload":{{"intended":{{"from":{came_from},'
        f'"to":"{kind}"}},"initial_state":{initial},"validated_state":{{"type":"{kind}","name":{name},'
        f'"message":{change.message},"state_details":{change.details},"data":{change.data}}},'
        f'"task_run":{change.task_run}}}}}'
    )
    return _ESCAPE.sub(lambda found: found[0] if found[1] else r"\ufffd", text).encode()


def related_flow_run(flow_run_id: object, name: str) -> str:
    """Return a flow run as a related resource, as JSON."""
    resource_id = f"prefect.flow-run.{flow_run_id}"
    labels = {"prefect.resource.id": resource_id, "prefect.resource.role": "flow-run", "prefect.resource.name": name}
    return json.dumps(labels)


def current_flow_run_id() -> UUID | None:
    """Return the id of the flow run around the caller."""
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def flow_run_facts() -> FlowRunFacts:
    """Return what is known of the flow run around the caller without a request to the server."""
    tags = json.dumps(sorted(TagsContext.get().current_tags))
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return FlowRunFacts(tags=tags)
    run = context.flow_run
    return FlowRunFacts(str(run.id), related_flow_run(run.id, run.name), tags, run.run_count)


def announce_flow_run() -> None:
    """Tell the sentinel which flow run is around the caller, so that it ends if this process is killed.

    Only the process that runs the flow announces it: another one that the context was sent to may end before the flow.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.detached:
        return
    # A child of multiprocessing, as of Prefect's ProcessPoolTaskRunner, calls no exit handlers.
    if multiprocessing.parent_process() is None and not get_current_settings().testing.test_mode:
        sentinel_client.announce(str(context.flow_run.id), context.flow_run.run_count, _settings_of_context())


_inherited: list[Settings] = []
"""The settings of this process when it announced its first flow run: the sentinel has inherited them."""


def _settings_of_context() -> dict[str, str]:
    """Return the environment variables that give the reporter the server that is in force here.

    None where the environment that the sentinel has inherited, and the profile, do that: unless the program changed its
    settings, with `temporary_settings` or for the whole process.
    """
    if not _inherited:
        _inherited.append(prefect.context.GLOBAL_SETTINGS_CONTEXT.settings)
    ours, inherited = get_current_settings(), _inherited[0]
    if ours is inherited or all(
        getattr(ours, section) == getattr(inherited, section) for section in ("api", "home", "server", "client")
    ):
        return {}
    return ours.to_environment_variables(exclude_unset=True)
