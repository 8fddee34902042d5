"""The deployments as they are committed, on a real server: run by a work pool's worker, and served from one process."""

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
DESCRIBED = {described["name"]: described for described in yaml.safe_load((ROOT / FILE).read_text())["deployments"]}
RUN_WITHIN = 60.0
COMPLETED = ("Completed", None)


def deployments(server: Server) -> dict[str, dict[str, Any]]:
    """What the server knows of each deployment, by name."""
    return {known["name"]: known for known in server.call("POST", "/deployments/filter", {})}


def runs_of(server: Server, deployment: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    found: list[dict[str, Any]] = server.call("POST", "/flow_runs/filter", wanted)
    return found


@contextmanager
def scheduled_often(server: Server, deployment: dict[str, Any]) -> Iterator[None]:
    """One more schedule meanwhile, every ten seconds: a cron fires once a minute at most.

    It repeats, since a time that has passed before the server's scheduler looks is left out.
    """
    schedule = {"schedule": {"interval": 10, "anchor_date": datetime.now(UTC).isoformat()}, "active": True}
    path = f"/deployments/{deployment['id']}/schedules"
    (made,) = server.call("POST", path, [schedule])
    try:
        yield
    finally:
        server.call("DELETE", f"{path}/{made['id']}")


def ending(server: Server, deployment: dict[str, Any], *, by_schedule: bool) -> tuple[str, str | None]:
    """State and message of the first run of the deployment that has ended, made by a schedule or by hand."""

    def ended() -> dict[str, Any] | None:
        over = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
        mine = (run for run in runs_of(server, deployment) if run["auto_scheduled"] == by_schedule)
        return next((run for run in mine if run["state_type"] in over), None)

    run = poll(ended, within=RUN_WITHIN, what=f"an ended run of {deployment['name']}")
    return run["state"]["name"], run["state"]["message"]


@pytest.fixture(scope="module")
def deployed(server: Server) -> dict[str, dict[str, Any]]:
    """Deployed from the clone with the committed file, by the command that README gives."""
    server.run(*prefect("work-pool", "create", "local", "--type", "process"))
    server.run(*prefect("--no-prompt", "deploy", "--all", "--prefect-file", FILE))
    return deployments(server)


@pytest.fixture
def worker(server: Server, deployed: object, tmp_path: Path) -> Iterator[None]:
    """A process worker, started somewhere else than in the clone."""
    command = prefect("worker", "start", "--pool", "local", "--type", "process")
    with running(command, env=server.env, cwd=tmp_path, log=tmp_path / "worker.log"):
        yield


def test_every_deployment_arrives_as_described(deployed: dict[str, dict[str, Any]]) -> None:
    """Schedule, time zone, parameters, tags, limit and pool of each are known to the server; its code is this clone."""
    assert deployed.keys() == DESCRIBED.keys()
    for name, described in DESCRIBED.items():
        known = deployed[name]
        assert [
            {key: entry["schedule"][key] for key in ("cron", "timezone")} for entry in known["schedules"]
        ] == described["schedules"]
        assert known["parameters"] == described.get("parameters", {})
        assert known["tags"] == described["tags"]
        assert known["description"] == described["description"]
        assert known["global_concurrency_limit"]["limit"] == described["concurrency_limit"]["limit"]
        assert known["work_pool_name"] == described["work_pool"]["name"]
        assert known["entrypoint"] == described["entrypoint"]
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        assert known["pull_steps"] == [step]


@pytest.mark.usefixtures("worker")
def test_a_worker_completes_runs_by_schedule_and_by_hand(server: Server, deployed: dict[str, dict[str, Any]]) -> None:
    """One collection because its time has come, one because somebody asked for it."""
    with scheduled_often(server, deployed["flights"]):
        server.run(*prefect("deployment", "run", "collection/prefect"))
        assert ending(server, deployed["prefect"], by_schedule=False) == COMPLETED
        assert ending(server, deployed["flights"], by_schedule=True) == COMPLETED


def test_served_from_one_process_a_schedule_fires(server: Server, deployed: object, tmp_path: Path) -> None:
    """`serve.py` takes the same deployments over, without a work pool, and runs one when its time has come."""
    command = [sys.executable, str(ROOT / "deployments" / "serve.py")]
    with running(command, env=server.env, cwd=tmp_path, log=tmp_path / "serve.log"):

        def served() -> dict[str, Any] | None:
            known = deployments(server)["processing"]
            return known if known["entrypoint"] == "flows.processing.processing_flow" else None

        processing = poll(served, within=30, what="serve.py's deployments on the server")
        assert deployments(server).keys() == DESCRIBED.keys()
        with scheduled_often(server, processing):
            assert ending(server, processing, by_schedule=True) == COMPLETED

    # Interrupted, it leaves no schedule behind that nobody would serve.
    assert all(known["paused"] for known in deployments(server).values())
