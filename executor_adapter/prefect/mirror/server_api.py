"""What a mirror asks of a Prefect server, through Prefect's own client: that has the address, the credentials, the
custom headers and the workspace right, for the embedded server, one's own and Prefect Cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

import httpx
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import PREFECT_API_URL

from executor_adapter.job.status import ErrorCode
from executor_adapter.prefect.mirror.state_events import TICK, StateEvent, iso

PAGE = 200
"""Task runs asked for at once: the most the server gives."""

TIMEOUT = httpx.Timeout(20.0, connect=5.0)

REFUSALS = frozenset({400, 413, 422})
"""Answers to a request that would be given again, however often it is made."""


DAY = 86_400.0
"""Seconds."""


class RefusedError(Exception):
    """The server cannot make sense of what it was sent, and never will."""


class FaultError(Exception):
    """The server broke down over what it was sent (HTTP 500): that may be its own trouble, or one event's fault."""


class Recorded(NamedTuple):
    """The state in which the server has a task run; `at` in seconds since the epoch."""

    name: str
    at: float
    message: str = ""

    def covers(self, event: StateEvent) -> bool:
        """Whether the task run has had the event: as its newest state, or, of a passed one, before an even newer one.

        A transaction may have rolled a completed task run back since. One of the spool may be of an earlier run of the
        job, in a flow run that was retried since: any newer state of the job's own is the true one.
        """
        if self.at < event.at - TICK / 2:
            return False
        is_newest = self.name in {event.name, "RolledBack"}
        return is_newest or not event.is_final or (event.origin is not None and not self._is_of_clean_up)

    def shows(self, event: StateEvent) -> bool:
        """Whether it is the event's state, and no other of that name."""
        return self.name == event.name and abs(self.at - event.at) < TICK

    @property
    def _is_of_clean_up(self) -> bool:
        """Whether the server itself has cancelled it, with its flow run: a job that was cancelled says so."""
        return self.name == "Cancelled" and not self.message.startswith(f"{ErrorCode.CANCELLED}:")


class ServerApi:
    """One server. A request is made once: whoever asks decides whether and when to ask again.

    Raises, from each of its methods:
        httpx.HTTPError: the server is away, or too busy; another time it may answer.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    @classmethod
    @contextlib.contextmanager
    def connected(cls) -> Iterator[Self]:
        """The server that Prefect's settings name; the embedded one where they name none. For one thread."""
        with _asking_once(), get_client(httpx_settings={"timeout": TIMEOUT}, sync_client=True) as client:
            yield cls(client)

    def send(self, bodies: Sequence[bytes]) -> None:
        """Post events. That it returns does not say that they are recorded, nor that they ever will be.

        Raises:
            RefusedError: at least one is not what the server takes for an event; none of them was taken.
            FaultError: it broke down; none was taken for certain.
        """
        headers = {"content-type": "application/json"}
        try:
            self.client.request("POST", "/events", content=b"[" + b",".join(bodies) + b"]", headers=headers)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in REFUSALS:
                raise RefusedError(str(error)) from error
            if error.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                raise FaultError(str(error)) from error
            raise

    def recorded(self, task_run_ids: Sequence[str]) -> dict[str, Recorded]:
        """The states of those of the task runs that the server knows."""
        known: dict[str, Recorded] = {}
        for start in range(0, len(task_run_ids), PAGE):
            page = task_run_ids[start : start + PAGE]
            found = self._post("/task_runs/filter", {"task_runs": {"id": {"any_": page}}, "limit": PAGE})
            known |= {run["id"]: _recorded(run["state"]) for run in found if run["state"] is not None}
        return known

    def count(self, task_run_ids: Sequence[str], state_name: str) -> int:
        """How many of the task runs the server has in the state of that name: much cheaper for it than `recorded`."""
        # Named as often as there are ids: SQLite, which guesses, would take one name for the better thing to search by,
        # and go through all task runs of all times that are in that state.
        names = [state_name] * len(task_run_ids)
        wanted = {"id": {"any_": list(task_run_ids)}, "state": {"name": {"any_": names}}}
        return int(self._post("/task_runs/count", {"task_runs": wanted}))

    def is_listed(self, event: StateEvent) -> bool:
        """Whether the event is in the server's list of events, which it shows and keeps; True where that cannot be
        asked for, as in Prefect Cloud, which has no such queue as a server of one's own."""
        if self.client.server_type == ServerType.CLOUD:
            return True
        # Without bounds of its own a question is of those that are not newer than the server's own clock.
        occurred = {"since": iso(event.at - DAY), "until": iso(event.at + DAY)}
        question = {"filter": {"id": {"id": [event.id]}, "occurred": occurred}, "limit": 0}
        try:
            return bool(self._post("/events/filter", question)["total"])
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                return True
            raise

    def recorded_at_once(self) -> int:
        """How many events the server's recorder writes in one transaction; 1, the default, where it does not say."""
        if self.client.server_type == ServerType.CLOUD:
            return 1
        try:
            return int(recorder_settings(self.client)["batch_size"])
        except (httpx.HTTPStatusError, LookupError, TypeError, ValueError):
            return 1

    def _post(self, path: Any, body: dict[str, Any]) -> Any:
        return self.client.request("POST", path, json=body).json()


@contextlib.contextmanager
def _asking_once() -> Iterator[None]:
    """Prefect's client would retry for a minute with growing pauses, which nobody could cut short."""
    context = get_settings_context()
    # `temporary_settings` would validate all settings anew: 30 ms, while the first jobs wait to be told of.
    client = context.settings.client.model_copy(update={"max_retries": 0})
    settings = context.settings.model_copy(update={"client": client})
    with SettingsContext(profile=context.profile, settings=settings):
        yield


def recorder_settings(client: SyncPrefectClient) -> dict[str, Any]:
    """How a server of one's own says that its recorder of task runs is set.

    Raises:
        httpx.HTTPError: it is away, or does not say.
        LookupError, TypeError, ValueError: what it says is something else.
    """
    answer = client.request("GET", "/admin/settings").json()
    recorder: dict[str, Any] = answer["server"]["services"]["task_run_recorder"]
    return recorder


def server_name() -> str:
    """What tells one server from another; the embedded one has an address of its own each time, and one database."""
    return PREFECT_API_URL.value() or "embedded"


def _recorded(state: dict[str, Any]) -> Recorded:
    at = datetime.fromisoformat(state["timestamp"]).timestamp()
    return Recorded(state["name"], at, state.get("message") or "")
