"""The committed deployments on a real server: run by the worker of a work pool, and served from one process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ROOT, Server, poll, prefect, running

FILE = "deployments/prefect.yaml"
ENTRIES = {entry["name"]: entry for entry in yaml.safe_load((ROOT / FILE).read_text())["deployments"]}
RUN_TIMEOUT = 60.0
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
    for schedule in deployment["schedules"]:
        server.call("DELETE", f"/deployments/{deployment['id']}/schedules/{schedule['id']}")


def final_state(server: Server, deployment: dict[str, Any], *, by_schedule: bool) -> tuple[str, str | None]:
    """Return state and message of the first finished run that a schedule, or a person, created."""

    def ended() -> dict[str, Any] | None:
        over = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        mine = (run for run in runs_of(server, deployment) if run["auto_scheduled"] == by_schedule)
        return next((run for run in mine if run["state_type"] in over), None)

    run = poll(ended, within=RUN_TIMEOUT, what=f"a finished run of {deployment['name']}")
    return run["state"]["name"], run["state"]["message"]


@pytest.fixture(scope="module")
def deployed(server: Server) -> dict[str, dict[str, Any]]:
    """The deployments, deployed from the clone by the documented command."""
    server.run(*prefect("work-pool", "create", "local", "--type", "process"))
    server.run(*prefect("--no-prompt", "deploy", "--all", "--prefect-file", FILE))
    return deployments(server)


@pytest.fixture
def worker(server: Server, deployed: object, tmp_path: Path) -> Iterator[None]:
    """A process worker that is started outside the clone."""
    command = prefect("worker", "start", "--pool", "local", "--type", "process")
    with running(command, env=server.env, cwd=tmp_path, log=tmp_path / "worker.log"):
        yield


def test_every_deployment_is_registered_as_described(deployed: dict[str, dict[str, Any]]) -> None:
    """The server has the schedule, parameters, tags, limit, pool and code path of each deployment."""
    assert deployed.keys() == ENTRIES.keys()
    for name, entry in ENTRIES.items():
        known = deployed[name]
        assert [
            {key: known_one["schedule"][key] for key in ("cron", "timezone")} for known_one in known["schedules"]
        ] == entry["schedules"]
        assert known["parameters"] == entry.get("parameters", {})
        assert known["tags"] == entry["tags"]
        assert known["description"] == entry["description"]
        assert known["global_concurrency_limit"]["limit"] == entry["concurrency_limit"]["limit"]
        assert known["work_pool_name"] == entry["work_pool"]["name"]
        assert known["entrypoint"] == entry["entrypoint"]
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        assert known["pull_steps"] == [step]


@pytest.mark.usefixtures("worker")
def test_a_worker_completes_scheduled_and_requested_runs(server: Server, deployed: dict[str, dict[str, Any]]) -> None:
    """A worker completes a run that its schedule created, and one that a person requested."""
    with scheduled_often(server, deployed["flights"]):
        server.run(*prefect("deployment", "run", "collection/prefect"))
        assert final_state(server, deployed["prefect"], by_schedule=False) == COMPLETED
        assert final_state(server, deployed["flights"], by_schedule=True) == COMPLETED


def test_serve_runs_a_scheduled_deployment(server: Server, deployed: object, tmp_path: Path) -> None:
    """`serve.py` serves the same deployments without a work pool and runs one when it is due."""
    command = [sys.executable, str(ROOT / "deployments" / "serve.py")]
    log = tmp_path / "serve.log"
    with running(command, env=server.env, cwd=tmp_path, log=log):
        # Before it says so it still registers deployments, whose schedules then get other ids.
        poll(lambda: "are being served" in log.read_text(), within=60, what="the deployments of serve.py")
        processing = deployments(server)["processing"]
        assert processing["entrypoint"] == "flows.processing.processing_flow"
        assert deployments(server).keys() == ENTRIES.keys()
        # Rows that another flow collects meanwhile would be left unprocessed, and this flow would fail.
        for deployment in deployments(server).values():
            remove_schedules(server, deployment)
        with scheduled_often(server, processing):
            assert final_state(server, processing, by_schedule=True) == COMPLETED

    # An interrupted serve.py pauses its schedules, because nothing would run them.
    assert all(known["paused"] for known in deployments(server).values())
