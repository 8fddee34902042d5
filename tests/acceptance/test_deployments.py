"""The committed deployments on a real server: run by the worker of a work pool, and served from one process.

By day prefect/test_deploying.py looks at what is deployed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ROOT, Server, prefect, running
from tests.waiting import wait_for

FILE = "deployments/prefect.yaml"
"""`prefect.yaml` in the root is a link to it."""
ENTRIES = {entry["name"]: entry for entry in yaml.safe_load((ROOT / FILE).read_text())["deployments"]}
COMPLETED = ("Completed", None)


def deployments(server: Server) -> dict[str, dict[str, Any]]:
    """Return the server's deployments by name."""
    return {known["name"]: known for known in server.call("POST", "/deployments/filter", {})}


def runs_of(server: Server, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    found: list[dict[str, Any]] = server.call("POST", "/flow_runs/filter", wanted)
    return found


@contextmanager
def scheduled_often(server: Server, deployment: dict[str, Any]) -> Iterator[None]:
    """Add a schedule that fires every ten seconds, because a cron schedule fires once a minute at most.

    It repeats, because the server's scheduler skips a time that has already passed.
    """
    schedule = {"schedule": {"interval": 10, "anchor_date": datetime.now(UTC).isoformat()}, "active": True}
    path = f"/deployments/{deployment['id']}/schedules"
    (created,) = server.call("POST", path, [schedule])
    try:
        yield
    finally:
        server.call("DELETE", f"{path}/{created['id']}")


def remove_schedules(server: Server, deployment: dict[str, Any]) -> None:
    """Remove the deployment's own schedules, which may be due during a test."""
    path = f"/deployments/{deployment['id']}"
    for schedule in server.call("GET", path)["schedules"]:
        server.call("DELETE", f"{path}/schedules/{schedule['id']}")


def final_state(server: Server, deployment: dict[str, Any], *, by_schedule: bool) -> tuple[str, str | None]:
    """Return state and message of the first finished run that a schedule, or a person, created.

    Runs that were cancelled because one was running already do not count.
    """

    def ended() -> dict[str, Any] | None:
        over = {"COMPLETED", "FAILED", "CRASHED"}
        mine = (run for run in runs_of(server, deployment) if run["auto_scheduled"] == by_schedule)
        return next((run for run in mine if run["state_type"] in over), None)

    run = wait_for(ended, what=f"a finished run of {deployment['name']}")
    return run["state"]["name"], run["state"]["message"]


def own_fields(server: Server, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what was set for these deployments, without what their runs change."""
    volatile = {"updated", "last_polled", "status", "global_concurrency_limit"}
    known = deployments(server)
    return {name: {key: known[name][key] for key in known[name].keys() - volatile} for name in names}


@pytest.fixture(scope="module")
def server(server: Server, small_config: Path) -> Server:
    """The server, whose flows read the small configuration."""
    return replace(server, env=server.env | {"EXECUTOR_ADAPTER_CONFIG": str(small_config)})


@pytest.fixture(scope="module")
def deployed(server: Server) -> dict[str, dict[str, Any]]:
    """The deployments, deployed from the clone by the documented command."""
    server.run(*prefect("work-pool", "create", "local", "--type", "process"))
    server.run(sys.executable, "deployments/deploy.py")
    return deployments(server)


@pytest.fixture
def worker(server: Server, deployed: object, tmp_path: Path) -> Iterator[None]:
    """A process worker that is started outside the clone."""
    command = prefect("worker", "start", "--pool", "local", "--type", "process")
    with running(command, env=server.env, cwd=tmp_path, log=tmp_path / "worker.log"):
        yield


@pytest.mark.nightly
@pytest.mark.usefixtures("worker")
def test_a_worker_completes_scheduled_and_requested_runs(server: Server, deployed: dict[str, dict[str, Any]]) -> None:
    """A worker completes a run that its schedule created, and the end of a requested collection starts the processing.

    It processes the rows of that tool alone.
    """
    remove_schedules(server, deployed["flights"])
    with scheduled_often(server, deployed["flights"]):
        assert final_state(server, deployed["flights"], by_schedule=True) == COMPLETED
    server.run_deployment("collection/flights")
    assert final_state(server, deployed["flights"], by_schedule=False) == COMPLETED

    def processed() -> list[dict[str, Any]]:
        ended = (run for run in runs_of(server, deployed["processing"]) if run["state_type"] == "COMPLETED")
        return [run for run in ended if run["parameters"]["tools"] == ["flights"]]

    (first, *_) = wait_for(processed, what="the processing of the collected flights")
    assert first["created_by"]["type"] == "AUTOMATION"


@pytest.mark.chaos
def test_serve_runs_beside_the_deployments_of_a_work_pool(
    server: Server, deployed: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """`serve.py` runs a deployment of its own when it is due, and leaves those of the work pool as they were."""
    for deployment in deployed.values():
        remove_schedules(server, deployment)
    before = own_fields(server, ENTRIES)
    command = [sys.executable, str(ROOT / "deployments" / "serve.py")]
    log = tmp_path / "serve.log"
    with running(command, env=server.env, cwd=tmp_path, log=log):
        # Before it says so it still registers deployments, whose schedules then get other ids.
        wait_for(lambda: "are being served" in log.read_text(), what="the deployments of serve.py")
        known = deployments(server)
        assert known.keys() == ENTRIES.keys() | {f"{name}-served" for name in ENTRIES}
        served = known["processing-served"]
        with scheduled_often(server, served):
            assert final_state(server, served, by_schedule=True) == COMPLETED

    # An interrupted serve.py pauses its schedules, because nothing would run them.
    assert all(known["paused"] for name, known in deployments(server).items() if name not in ENTRIES)
    assert own_fields(server, ENTRIES) == before
