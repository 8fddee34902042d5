"""What a mirror asks of a Prefect server, through Prefect's own client: that has the address, the credentials, the
custom headers and the workspace right, for the embedded server, one's own and Prefect Cloud."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Self

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

PAGE = 200
"""Task runs asked for at once: the most the server gives."""

TIMEOUT = httpx.Timeout(20.0, connect=5.0)

REFUSALS = frozenset({400, 413, 422})
"""Answers to a request that would be given again, however often it is made."""


class RefusedError(Exception):
    """The server cannot make sense of what it was sent, and never will."""


class Recorded(NamedTuple):
    """The state in which the server has a task run; `at` in seconds since the epoch."""

    name: str
    at: float


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
        # Prefect's client retries for a minute with growing pauses, which nobody could cut short.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            with get_client(httpx_settings={"timeout": TIMEOUT}, sync_client=True) as client:
                yield cls(client)

    def send(self, bodies: Sequence[bytes]) -> None:
        """Post events. That it returns does not say that they are recorded, nor that they ever will be.

        Raises:
            RefusedError: at least one is not what the server takes for an event; none of them was taken.
        """
        headers = {"content-type": "application/json"}
        try:
            self.client.request("POST", "/events", content=b"[" + b",".join(bodies) + b"]", headers=headers)
        except httpx.HTTPStatusError as error:
            if error.response.status_code in REFUSALS:
                raise RefusedError(str(error)) from error
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
        wanted = {"id": {"any_": list(task_run_ids)}, "state": {"name": {"any_": [state_name]}}}
        return int(self._post("/task_runs/count", {"task_runs": wanted}))

    def _post(self, path: Any, body: dict[str, Any]) -> Any:
        return self.client.request("POST", path, json=body).json()


def server_name() -> str:
    """What tells one server from another; the embedded one has an address of its own each time, and one database."""
    return PREFECT_API_URL.value() or "embedded"


def _recorded(state: dict[str, Any]) -> Recorded:
    return Recorded(state["name"], datetime.fromisoformat(state["timestamp"]).timestamp())
