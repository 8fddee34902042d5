"""A process whose Prefect settings change: each flow run is watched, ended and mirrored on its own server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import prefect.context
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.executor import sentinel_client
from executor_adapter.prefect import PrefectMirror, run_jobs
from executor_adapter.prefect.cancellation import watcher
from executor_adapter.prefect.cancellation.flow_end import FlowRunWatch
from executor_adapter.prefect.cancellation.watcher import watch_flow_run
from executor_adapter.prefect.crashes import sweep
from executor_adapter.prefect.mirror import events
from executor_adapter.prefect.mirror.outbox import OutboxFile
from tests.prefect.conftest import Api, cancel, own_id
from tests.prefect.sample_events import COMPLETED, event
from tests.prefect.server_proxy import ServerProxy
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def proxy(prefect_api: str) -> Iterator[ServerProxy]:
    """The server under another address, which can be made to refuse."""
    with ServerProxy(httpx.URL(prefect_api).port or 0) as proxy:
        yield proxy


def address(proxy: ServerProxy) -> str:
    return f"http://127.0.0.1:{proxy.port}/api"


def test_a_cancel_is_seen_on_the_server_of_the_flow_run(
    api: Api, prefect_api: str, proxy: ServerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one server is away, a flow run of another one is cancelled and ended, and later one of the first."""
    monkeypatch.setattr(watcher, "POLL_INTERVAL", 0.1)
    ids, heard = dict[str, UUID](), {name: threading.Event() for name in ("away", "here")}
    watches: dict[str, FlowRunWatch] = {}

    @flow
    def watched(name: str) -> None:
        watches[name] = watch_flow_run(own_id(), heard[name].set, until_flow_ends=True)
        ids[name] = own_id()
        assert heard[name].wait(PATIENCE)
        raise InterruptedError("its jobs were cancelled")

    def run(name: str) -> None:
        watched(name, return_state=True)
        watches[name].close()  # After the engine has proposed its state, as a task runner does.

    def state(name: str) -> Any:
        return api.get(f"/flow_runs/{ids[name]}")["state_name"]

    with ThreadPoolExecutor(2) as threads:
        try:
            with temporary_settings({PREFECT_API_URL: address(proxy), PREFECT_LOGGING_TO_API_ENABLED: False}):
                away = threads.submit(copy_context().run, run, "away")
                wait_for(lambda: "away" in ids)
            proxy.close()
            here = threads.submit(copy_context().run, run, "here")
            wait_for(lambda: "here" in ids)
            cancel(prefect_api, ids["here"])
            assert heard["here"].wait(PATIENCE), "the cancel is not seen"
            wait_for(lambda: state("here") == "Cancelled")
            assert not heard["away"].is_set()
            proxy.open()
            cancel(prefect_api, ids["away"])
            assert heard["away"].wait(PATIENCE)
            wait_for(lambda: state("away") == "Cancelled")
        finally:
            for each in heard.values():
                each.set()
        assert not wait([here, away], PATIENCE).not_done
    # What is still told to the server has its proxy until then.
    wait_for(lambda: "cancelled-flow-run" not in [thread.name for thread in threading.enumerate()])


def test_a_mirror_sends_for_the_flow_run_that_it_joins(prefect_api: str, proxy: ServerProxy) -> None:
    """A mirror that was made for one server sends what was left for the server of its flow run."""
    with temporary_settings({PREFECT_API_URL: address(proxy)}):
        mirror = PrefectMirror()
    left = OutboxFile(prefect_api)
    left.write([event(COMPLETED)], is_held=False)
    left.release()
    with JobExecutor(1):
        flow(lambda: len(run_jobs([Job(function=dict, pool="thread")], mirror=mirror)))()
    wait_for(lambda: mirror.drain().complete and not left.count())
    mirror.close()


def test_earlier_runs_are_looked_after_once_for_each_server(
    prefect_api: str, proxy: ServerProxy, mocker: MockerFixture
) -> None:
    """What earlier processes have left is ended once for each server that the process uses."""
    mocker.patch.object(sweep, "_swept", set())
    swept = mocker.patch.object(
        sweep, "_sweep_earlier_runs", side_effect=lambda *_: servers.append(PREFECT_API_URL.value())
    )
    servers: list[str] = []
    flow_run: Any = SimpleNamespace(id=uuid4(), flow_id=uuid4(), run_count=1, state=None)
    for url in (prefect_api, address(proxy), prefect_api):
        with temporary_settings({PREFECT_API_URL: url}):
            sweep.sweep_earlier_runs(flow_run)
    wait_for(lambda: len(servers) == 2)
    assert (sorted(servers), swept.call_count) == (sorted([prefect_api, address(proxy)]), 2)


def test_a_start_is_never_later_than_now(mocker: MockerFixture) -> None:
    """Where the server's clock is ahead of the host's, a job submitted now is not taken for one of an earlier start."""
    mocker.patch.object(sweep, "_swept", set())
    swept = mocker.patch.object(sweep, "_sweep_earlier_runs")
    state = SimpleNamespace(timestamp=datetime.now(UTC) + timedelta(hours=1))
    flow_run: Any = SimpleNamespace(id=uuid4(), flow_id=uuid4(), run_count=2, state=state)
    sweep.sweep_earlier_runs(flow_run)
    now = {"flow_run_run_count": 0, "state": {"timestamp": datetime.now(UTC).isoformat()}}
    wait_for(lambda: swept.call_count == 1)
    assert not swept.call_args.args[2].is_after(now)


def test_a_death_is_reported_to_the_server_of_the_flow_run(
    api: Api, prefect_api: str, proxy: ServerProxy, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture
) -> None:
    """A process that changes its settings for all its threads announces its flow runs with their own server."""
    monkeypatch.setattr(events, "_inherited", [])
    announce = mocker.patch.object(sentinel_client, "announce")
    environments = []
    for url in (prefect_api, address(proxy), prefect_api):
        monkeypatch.setenv("PREFECT_API_URL", url)
        prefect.context.refresh_global_settings_context()
        with prefect.context.SettingsContext(
            profile=prefect.context.GLOBAL_SETTINGS_CONTEXT.profile,
            settings=prefect.context.GLOBAL_SETTINGS_CONTEXT.settings,
        ):
            flow(events.announce_flow_run)()
        environments.append(announce.call_args.args[2].get("PREFECT_API_URL"))
    assert environments == [None, address(proxy), None]
