"""Fixtures: a real Prefect server in a process of its own, and access to its records of a run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from uuid import UUID

import prefect.context
import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, Settings

from executor_adapter import JobExecutor
from executor_adapter.executor.of_process import enter_executor, leave_executor
from executor_adapter.pipeline.flows import steps
from executor_adapter.prefect.crashes import sweep
from tests.insides import supervisor_of
from tests.servers import WITHOUT_SCHEDULES, api_client, new_user_env, prefect_server
from tests.shared_server import shared_server

PREFECTS_OWN_LEAKS = (
    "ignore:unclosed:ResourceWarning",
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
)
"""Prefect leaves the sockets of some of its clients to the garbage collector, with plain tasks too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for filtered in PREFECTS_OWN_LEAKS:
                item.add_marker(pytest.mark.filterwarnings(filtered))


@pytest.fixture(scope="module", autouse=True)
def _collect_prefects_leaks() -> Iterator[None]:
    """Let them go here, not in whichever test comes later."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def without_heartbeats() -> Callable[[Settings], Settings]:
    """Return a function that returns settings without heartbeats; to make them anew for each test takes 20 ms."""
    latest: list[Settings] = []

    def without(settings: Settings) -> Settings:
        if not latest or latest[0] is not settings:
            latest[:] = settings, settings.copy_with_update({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        return latest[1]

    return without


@pytest.fixture(autouse=True)
def _no_heartbeats(without_heartbeats: Callable[[Settings], Settings]) -> Iterator[None]:
    """A flow that ends waits up to a second for its thread of heartbeats; flows in processes of their own do."""
    context = prefect.context.get_settings_context()
    with prefect.context.SettingsContext(profile=context.profile, settings=without_heartbeats(context.settings)):
        yield


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server of all tests of this machine; Prefect's settings in this process point to it."""
    with shared_server() as url, used(url, tmp_path_factory.mktemp("prefect")):
        yield url


@pytest.fixture(scope="module")
def server_of_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server for one file of tests, for what would disturb tests of other files."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, new_user_env(home, **WITHOUT_SCHEDULES)) as server:
        url = f"{server.url}/api"
        with used(url, home):
            yield url


@contextmanager
def used(url: str, home: Path) -> Iterator[None]:
    """Let Prefect's settings in this process point to a server, whose tests have a home of their own."""
    settings = {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # tasks outside a flow have no log at the server
    }
    with _PrefectSettings(settings):
        yield
        APILogHandler().flush()  # Otherwise Prefect tries for a minute at the exit to reach a server that is gone.


class _PrefectSettings:
    """Prefect's settings for this whole process, all its threads included."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._settings}
        os.environ.update(self._settings)
        self._refresh()

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        self._refresh()

    @staticmethod
    def _refresh() -> None:
        prefect.context.refresh_global_settings_context()
        EventsWorker.drain_all(timeout=10)  # One that goes on sends what follows to the server before.


class Api:
    """Reads what the server knows."""

    def __init__(self, url: str) -> None:
        self._client = api_client(url)
        self._made_at = datetime.now(UTC)

    def task_runs(self, flow_run_id: UUID | str, *, offset: int = 0) -> list[dict[str, Any]]:
        """A page of the flow run's task runs, in the order of their submission."""
        of_flow_run = {"id": {"any_": [str(flow_run_id)]}}
        body = {"flow_runs": of_flow_run, "sort": "EXPECTED_START_TIME_ASC", "offset": offset}
        return self.post("/task_runs/filter", body)

    def named(self, name: str) -> list[dict[str, Any]]:
        """The task runs of that name, of whatever flow run, since this was made: a kept server has those of earlier."""
        found: list[dict[str, Any]] = self.post("/task_runs/filter", {"task_runs": {"name": {"any_": [name]}}})
        return [run for run in found if datetime.fromisoformat(run["expected_start_time"]) >= self._made_at]

    def task_run(self, task_run_id: UUID | str) -> dict[str, Any]:
        answer = self._client.get(f"/task_runs/{task_run_id}")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return {"state_name": None}
        answer.raise_for_status()
        return answer.json()

    def states(self, task_run_id: UUID | str) -> list[dict[str, Any]]:
        answer = self._client.get("/task_run_states/", params={"task_run_id": str(task_run_id)})
        answer.raise_for_status()
        return sorted(answer.json(), key=lambda state: state["timestamp"])

    def state_names(self, task_run_id: UUID | str) -> list[str]:
        return [state["name"] for state in self.states(task_run_id)]

    def messages(self, task_run_id: UUID | str, *, offset: int = 0) -> list[str]:
        """A page of the task run's log, the oldest line first."""
        body = {"logs": {"task_run_id": {"any_": [str(task_run_id)]}}, "sort": "TIMESTAMP_ASC", "offset": offset}
        return [log["message"] for log in self.post("/logs/filter", body)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name, the newest 50."""
        found: list[dict[str, Any]] = self.post("/events/filter", {"filter": {"event": {"name": [name]}}})["events"]
        return found

    def get(self, path: str) -> Any:
        answer = self._client.get(path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self._client.post(path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def api(prefect_api: str) -> Iterator[Api]:
    client = Api(prefect_api)
    yield client
    client.close()


@pytest.fixture(scope="session")
def executors() -> Iterator[list[JobExecutor]]:
    """The executors of all modules: the last one is in use."""
    made: list[JobExecutor] = []
    yield made
    for executor in made:
        executor.shutdown()


@pytest.fixture(scope="module")
def executor(executors: list[JobExecutor]) -> Iterator[JobExecutor]:
    """An executor of two workers around a module's tests: job tasks use it. Its processes import Prefect once.

    It is the one of the modules before, unless a signal that a test was about has ended that.
    """
    if not executors or supervisor_of(executors[-1]).intake.closed:
        executors.append(JobExecutor(max_workers=2))
    token = enter_executor(lambda: executors[-1])
    yield executors[-1]
    leave_executor(token)


def own_id() -> UUID:
    """The id of the flow run around the caller."""
    context = prefect.context.FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run.id


def cancel(url: str, flow_run_id: UUID, state: str = "CANCELLING") -> None:
    """Cancel a flow run, as the UI does."""
    body = {"state": {"type": state}, "force": True}
    with api_client(url) as client:
        client.post(f"/flow_runs/{flow_run_id}/set_state", json=body).raise_for_status()


@pytest.fixture
def quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep waits until states of its dead process may be recorded: here none are on their way."""
    monkeypatch.setattr(sweep, "SETTLE_SECONDS", 0.5)


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no pipeline start processes, which would import Prefect: test_demo_flows.py has them."""
    for name in ("PROCESS", "SUMMARISE"):
        monkeypatch.setattr(steps, name, getattr(steps, name).with_options(pool="thread"))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder in which the attempts of a job leave what the next one, or the test, reads."""
    return tmp_path
