"""The requests that a mirror makes to a Prefect server.

They go through Prefect's own client, which knows the address, the credentials, the custom headers and the workspace,
for the embedded server, a self-hosted one and Prefect Cloud alike.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from uuid import UUID

import httpx
import prefect
from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import SettingsContext, get_settings_context
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings

from executor_adapter.error_codes import error_code_of
from executor_adapter.job import ErrorCode
from executor_adapter.monitoring import ready_checks
from executor_adapter.prefect.mirror.events import CLOCK_RESOLUTION_SECONDS, FlowRunFacts, StateEvent, iso
from executor_adapter.worker.bond import end_with_this_process

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

logger = logging.getLogger("executor_adapter.prefect")

T = TypeVar("T")

PAGE_LIMIT = 200
"""Task runs in one answer: the server's own limit."""

REQUEST_TIMEOUT = httpx.Timeout(20.0, connect=5.0)

_LATER_OR_ELSEWHERE = frozenset({401, 404, 405, 407, 408, 425, 429})
"""HTTP status codes of the 400s that do not tell of what was sent, but of credentials, address or load."""

PERMANENT_ERROR_CODES = frozenset({ErrorCode.REQUEST_ERROR, ErrorCode.CONFIGURATION_ERROR})
"""Error codes of answers that a repeated request would get again."""

MAX_ANSWER_LENGTH = 500
"""Characters of a server's answer that an error message contains."""

DAY_SECONDS = 86_400.0


class RejectedError(httpx.HTTPError):
    """The server did not take what it was sent: because of one event, or of trouble of its own or of a proxy's."""


class Recorded(NamedTuple):
    """The state of a task run on the server; `at` is in seconds since the epoch."""

    name: str
    at: float
    message: str = ""

    def covers(self, event: StateEvent) -> bool:
        """Return whether the task run has entered the event's state, as its newest state or before a newer one.

        A final state must be the newest one, with two exceptions. A transaction may have rolled a completed task run
        back since. And an inherited event may be of an earlier run of the job, in a flow run that was retried since:
        then any newer state that is the job's own is the true one.
        """
        if self.at < event.at - CLOCK_RESOLUTION_SECONDS / 2:
            return False
        is_newest = self.name in {event.name, "RolledBack"}
        return is_newest or not event.is_final or (event.is_inherited and not self._is_of_clean_up)

    @property
    def _is_of_clean_up(self) -> bool:
        """Whether the server cancelled the task run with its flow run: a cancelled job's message has its error code."""
        return self.name == "Cancelled" and not self.message.startswith(f"{ErrorCode.CANCELLED}:")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Raise httpx.DecodingError for an answer that is not a Prefect server's, as a proxy's page with status 200."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise httpx.DecodingError(f"its answer is not that of a Prefect server: {error!r}") from error


class ServerApi:
    """One server. Each request is made once: the caller decides whether and when to repeat it.

    Raises, from each of its methods:
        httpx.HTTPError: the server cannot be reached, or is too busy; it may answer later.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client

    @classmethod
    @contextlib.contextmanager
    def connected(cls) -> Iterator[Self]:
        """Connect to the server of Prefect's settings, or to the embedded one without any. For one thread alone."""
        start_embedded_server()
        with _without_retries(), get_client(httpx_settings={"timeout": REQUEST_TIMEOUT}, sync_client=True) as client:
            yield cls(client)

    @_readable()  # Prefect's client may ask for a CSRF token first.
    def send(self, bodies: Sequence[bytes]) -> None:
        """Post events. The server answers before it records them, and may still lose them.

        Raises:
            RejectedError: the server rejects them all, perhaps because of one of them; it may have taken some.
        """
        headers = {"content-type": "application/json"}
        try:
            self.client.request("POST", "/events", content=b"[" + b",".join(bodies) + b"]", headers=headers)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if not _is_rejection(status):
                raise
            raise RejectedError(f"{trouble_of(error)}: {error.response.text[:MAX_ANSWER_LENGTH]}") from error

    def recorded(self, task_run_ids: Sequence[str]) -> dict[str, Recorded]:
        """Return the states of the task runs by their ids, without those that the server does not know."""
        known: dict[str, Recorded] = {}
        for page in parts(task_run_ids):
            wanted = {"task_runs": {"id": {"any_": page}}, "limit": PAGE_LIMIT}
            known |= self.request("/task_runs/filter", _recorded_states, json=wanted)
        return known

    def count(self, task_run_ids: Sequence[str], state_name: str) -> int:
        """Return how many of the task runs are in the state of that name: much cheaper than `recorded`."""
        # The name is repeated for each id. Given a single name, SQLite's planner searches by the name, and reads all
        # task runs that were ever in that state.
        names = [state_name] * len(task_run_ids)
        wanted = {"id": {"any_": list(task_run_ids)}, "state": {"name": {"any_": names}}}
        return self.request("/task_runs/count", int, json={"task_runs": wanted})

    def deleted_flow_runs(self, ids: Sequence[str]) -> set[str]:
        """Return those of the flow runs that the server does not have.

        None where that need not be known: Prefect Cloud does not record task runs as a self-hosted server does.
        """
        if self.client.server_type == ServerType.CLOUD:
            return set()
        return {each for page in parts(ids) for each in self._deleted_of(page)}

    def _deleted_of(self, ids: Sequence[str]) -> set[str]:
        wanted = {"flow_runs": {"id": {"any_": list(ids)}}}
        # Much cheaper than the flow runs with all their fields.
        if self.request("/flow_runs/count", int, json=wanted) == len(ids):
            return set()
        body = wanted | {"limit": PAGE_LIMIT}
        return set(ids) - self.request("/flow_runs/filter", lambda found: {run["id"] for run in found}, json=body)

    def is_listed(self, event: StateEvent) -> bool:
        """Return whether the server's list of events contains the event.

        True where that cannot be asked: Prefect Cloud does not have the queue that a self-hosted server has.
        """
        if self.client.server_type == ServerType.CLOUD:
            return True
        # Without bounds the server leaves out events that are newer than its own clock.
        occurred = {"since": iso(event.at - DAY_SECONDS), "until": iso(event.at + DAY_SECONDS)}
        body = {"filter": {"id": {"id": [event.id]}, "occurred": occurred}, "limit": 0}
        try:
            return self.request("/events/filter", lambda found: bool(found["total"]), json=body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                return True
            raise

    @_readable()
    def propose(self, run_id: UUID, state: State[Any], unless: Collection[StateType], *, force: bool) -> None:
        """Set the state of a flow run, if its type now is not one of `unless`."""
        current = self.client.read_flow_run(run_id).state
        if current is not None and current.type not in unless:
            self.client.set_flow_run_state(run_id, state, force=force)

    @_readable()
    def request(self, path: Any, read: Callable[[Any], T], method: Any = "POST", **how: Any) -> T:
        """Return what `read` makes of the answer to a request, which is JSON.

        Raises:
            httpx.DecodingError: `read` cannot read the answer, so it is not a Prefect server's.
        """
        return read(self.client.request(method, path, **how).json())


def parts(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids in parts as large as a request may name."""
    each = sorted(set(ids))
    return (each[start : start + PAGE_LIMIT] for start in range(0, len(each), PAGE_LIMIT))


def _is_rejection(status: int) -> bool:
    """Return whether the server cannot read, store or process what it was sent, and so will not later either."""
    return status == httpx.codes.INTERNAL_SERVER_ERROR or (400 <= status < 500 and status not in _LATER_OR_ELSEWHERE)


def trouble_of(error: httpx.HTTPError) -> str:
    """Return in words why a server could not be used, and what to do where waiting does not help."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    match status:
        case 401:
            return f"it refuses the credentials (HTTP 401): {_CHECK_CREDENTIALS}"
        case 403:
            return f"the credentials do not permit this (HTTP 403): {_CHECK_CREDENTIALS}"
        case 404 | 405:
            return f"there is no Prefect API at this address (HTTP {status}): check PREFECT_API_URL, which ends in /api"
        case None:
            return f"{type(error).__name__}: {error}"
        case _:
            return f"HTTP {status}"


_CHECK_CREDENTIALS = "check PREFECT_API_KEY (Prefect Cloud) or PREFECT_API_AUTH_STRING (a server with a password)"


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Turn off the retries of Prefect's client: they last for a minute, and cannot be cut short."""
    context = get_settings_context()
    # `temporary_settings` would validate all settings again, which takes 30 ms while the first jobs wait to be sent.
    client = context.settings.client.model_copy(update={"max_retries": 0})
    settings = context.settings.model_copy(update={"client": client})
    with SettingsContext(profile=context.profile, settings=settings):
        yield


@_readable()
def read_flow_run_facts(facts: FlowRunFacts) -> FlowRunFacts:
    """Return the facts with all resources that the flow run is related to, such as its deployment.

    It asks the server, in an event loop of its own. Where a resource was deleted, or may not be read, the facts are
    returned as they are.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    if not facts.related:
        return facts
    try:
        found = asyncio.run(_related())
    except (ObjectNotFound, httpx.HTTPStatusError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error_code_of(error) not in PERMANENT_ERROR_CODES:
            raise
        logger.info("cannot read the resources of the flow run; its task runs are related to it alone: %s", error)
        return facts
    related = [resource for resource in found if resource["prefect.resource.role"] != "task-run"]
    return facts._replace(related=",".join(map(json.dumps, related)))


async def _related() -> list[dict[str, str]]:
    async with get_client() as client:
        return [dict(resource.root) for resource in await related_resources_from_run_context(client)]


NEWEST_TESTED = (3, 9)
"""The newest Prefect that all tests have passed with."""


@functools.cache
def warn_of_untested_prefect(version: str = prefect.__version__) -> None:
    """Log once in this process that Prefect is newer than those that were tested."""
    # Not each version is numbers alone: 3.10rc1, or 0+unknown of an unpacked archive.
    if tuple(map(int, re.findall(r"\d+", version)[:2])) > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        logger.warning(
            "Prefect %s is newer than %s, the newest that executor_adapter was tested with: look for a newer"
            " executor_adapter, or install 'prefect==%s.*' if something does not work",
            *(version, newest, newest),
        )


def server_name() -> str:
    """Return a name for the server of Prefect's settings. It may hold a password: it is never shown.

    The embedded server has a new address each time, but one database, and so one name.
    """
    database = get_current_settings().server.database.connection_url
    return PREFECT_API_URL.value() or f"embedded {database and database.get_secret_value()}"


def server_address() -> str:
    """Return the server's address for messages, without a password that it may contain."""
    url = PREFECT_API_URL.value()
    return str(httpx.URL(url).copy_with(userinfo=b"")) if url else "its address (the embedded server)"


def server_trouble() -> str | None:
    """Return why the server of Prefect's settings does not answer; None where it does, or where none is configured."""
    if not PREFECT_API_URL.value():
        return None
    with _without_retries(), get_client(httpx_settings={"timeout": REQUEST_TIMEOUT}, sync_client=True) as client:
        error = client.api_healthcheck()
    return None if error is None else f"{server_address()} does not answer: {type(error).__name__}: {error}"


ready_checks["prefect server"] = server_trouble

EMBEDDED_START_TIMEOUT = 120
"""Seconds for the embedded server to start, unless Prefect's settings give it more: the first makes its database."""
BIND_INTERVAL = 0.01
"""Seconds between two looks for the process of a server that starts."""

_embedded_lock = threading.Lock()
_bound_server: int | None = None
"""The process id of the embedded server that ends with this process."""
_is_exiting = False


def start_embedded_server() -> None:
    """Start Prefect's embedded server where no API is configured, and let it end with this process, killed or not.

    Prefect starts it where a client is made, and two threads that make one at that moment start two. So whatever here
    makes the first client of a process calls this before.

    Raises:
        httpx.ConnectError: the process is ending, and with it the server.
        RuntimeError: the server does not start in time.
    """
    settings = get_current_settings()
    if settings.api.url is not None or not settings.server.ephemeral.enabled:
        return
    # Imported here, because it loads all of Prefect's server.
    from prefect.server.api.server import SubprocessASGIServer

    with _embedded_lock:
        if _is_exiting:
            raise httpx.ConnectError("the embedded server ends with this process")
        server = SubprocessASGIServer()
        is_first = not server.running
        if is_first:
            is_over = threading.Event()
            # It takes many seconds to start, and this process may be killed in them.
            binding = threading.Thread(target=_bind_until, args=(is_over, server), name="bind-embedded-server")
            binding.start()
            try:
                server.start(max(EMBEDDED_START_TIMEOUT, settings.server.ephemeral.startup_timeout_seconds))
            except BaseException:
                server.stop()  # Prefect leaves it running, and starts another one next time.
                raise
            finally:
                is_over.set()
                binding.join()
        if _bind(server) or is_first:
            # Exit handlers run in reverse order: this one before the one with which Prefect ends the server.
            atexit.unregister(_on_exit)
            atexit.register(_on_exit)


def _bind_until(is_over: threading.Event, server: SubprocessASGIServer) -> None:
    """Bind the server as soon as its process is there; it has another one where its port is taken."""
    while not is_over.wait(BIND_INTERVAL):
        _bind(server)


def _bind(server: SubprocessASGIServer) -> bool:
    """Let the server's process end with this one, and return whether that process is a new one."""
    global _bound_server
    process = server.server_process
    if process is None or process.pid == _bound_server:
        return False
    end_with_this_process(process.pid)
    _bound_server = process.pid  # Not before: where that has failed in the thread, the caller tries and hears of it.
    return True


def _on_exit() -> None:
    global _is_exiting
    _is_exiting = True


def _recorded_states(task_runs: list[dict[str, Any]]) -> dict[str, Recorded]:
    return {run["id"]: _recorded(run["state"]) for run in task_runs if run["state"] is not None}


def _recorded(state: dict[str, Any]) -> Recorded:
    return Recorded(state["name"], datetime.fromisoformat(state["timestamp"]).timestamp(), state.get("message") or "")
