"""The committed deployments on a real server, as `deployments/deploy.py` and `serve.py` leave them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_mock import MockerFixture

import deployments.deploy
import deployments.serve
from executor_adapter.config.sources import CONFIG_VARIABLE
from tests.prefect.conftest import Api
from tests.servers import ROOT

ENTRIES = {
    entry["name"]: entry for entry in yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]
}
POOL = "local"
"""The work pool of all of them."""
KNOWN = {
    "flights": ("collection", {"cron": "0 2 * * *", "timezone": "America/New_York"}, False),
    "world": ("collection", ENTRIES["world"]["schedules"][0], True),
    "maintenance": ("maintenance", {"cron": "1 1 * * 1", "timezone": "UTC"}, False),
}
"""Those that the server has already: the name of the flow, the schedule, and whether it is active."""


@pytest.fixture(scope="module")
def server(prefect_api: str) -> Iterator[Api]:
    """A server on which some of the deployments were made earlier, and schedules of two were paused since."""
    api = Api(prefect_api)
    api.post("/work_pools/", {"name": POOL, "type": "process"})
    for name, (flow, schedule, active) in KNOWN.items():
        flow_id = api.post("/flows/", {"name": flow})["id"]
        schedules = [{"schedule": schedule, "active": active}]
        api.post("/deployments/", {"name": name, "flow_id": flow_id, "work_pool_name": POOL, "schedules": schedules})
    yield api
    api.close()


def known_to(api: Api) -> dict[str, dict[str, Any]]:
    """Return the deployments of the work pool by name."""
    wanted = {"work_pools": {"name": {"any_": [POOL]}}}
    return {known["name"]: known for known in api.post("/deployments/filter", wanted)}


def active_in(known: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which schedules are active, by the names of the deployments that have one."""
    return {name: schedule["active"] for name, each in known.items() for schedule in each["schedules"]}


def deploy(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run `deploy.py` with these arguments."""
    monkeypatch.setattr("sys.argv", ["deploy.py", *words])
    monkeypatch.setattr("sys.path", sys.path.copy())
    deployments.deploy.main()


@pytest.fixture(scope="module")
def deployed(server: Api) -> dict[str, dict[str, Any]]:
    """The deployments once they are deployed from the clone, whose configuration names the tools."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(CONFIG_VARIABLE, str(ROOT / "config.yaml"))
        with pytest.raises(SystemExit) as ended:
            deploy(monkeypatch)
    assert ended.value.code == 0
    return known_to(server)


def test_served_flow_runs_have_the_environment_of_the_job_variables(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture, tmp_path: Path
) -> None:
    """`serve.py` serves from a process with the variables that its deployments set for a worker's flow runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    mocker.patch.dict(os.environ)
    served: list[str] = []
    monkeypatch.setattr(
        deployments.serve, "serve", lambda *_: served.append(os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    )
    deployments.serve.main()
    assert served == ["30"]


def test_what_deploying_changes_is_said_before(
    server: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`deploy.py --dry-run` names what is new, paused and due at other times, and changes nothing."""
    before = known_to(server)
    deploy(monkeypatch, "--dry-run")
    assert capsys.readouterr().out.splitlines() == [
        "flights stays paused: cron 0 2 * * *, timezone America/New_York",
        "processing is new",
        "pipeline is new",
        "maintenance gets a new schedule, which is active: cron 30 3 * * 0, timezone UTC",
        "maintenance loses a schedule: cron 1 1 * * 1",
    ]
    assert known_to(server) == before


def test_every_deployment_is_registered_as_described(deployed: dict[str, dict[str, Any]]) -> None:
    """The server has the schedule, parameters, tags, limit, work queue, variables and code path of each deployment."""
    assert deployed.keys() == ENTRIES.keys()
    for name, entry in ENTRIES.items():
        known = deployed[name]
        times = [each["schedule"] for each in known["schedules"]]
        assert [(each.get("cron"), each.get("interval"), each["timezone"]) for each in times] == [
            (each.get("cron"), each.get("interval"), each["timezone"]) for each in entry.get("schedules", [])
        ]
        assert known["parameters"] == entry.get("parameters", {})
        assert known["tags"] == entry["tags"]
        assert known["description"] == entry["description"]
        assert known["global_concurrency_limit"]["limit"] == entry["concurrency_limit"]["limit"]
        assert known["concurrency_options"]["collision_strategy"] == entry["concurrency_limit"]["collision_strategy"]
        pool = entry["work_pool"]
        assert (known["work_pool_name"], known["work_queue_name"]) == (pool["name"], pool["work_queue_name"])
        assert known["job_variables"] == pool["job_variables"]
        assert known["entrypoint"] == entry["entrypoint"]
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        assert known["pull_steps"] == [step]


def test_deploying_keeps_what_is_paused(deployed: dict[str, dict[str, Any]]) -> None:
    """A paused schedule stays paused, others stay active, and one whose times have changed becomes active."""
    assert active_in(deployed) == {"flights": False, "world": True, "maintenance": True}


def test_the_form_of_a_deployment_explains_its_parameters(deployed: dict[str, dict[str, Any]]) -> None:
    """Each parameter has a description, and the tools are offered as choices."""
    for known in deployed.values():
        parameters = known["parameter_openapi_schema"]["properties"]
        assert all(len(parameter["description"]) > 20 for parameter in parameters.values()), known["name"]
    tools = deployed["flights"]["parameter_openapi_schema"]["properties"]["tools"]["anyOf"][0]
    assert tools["items"]["enum"][:3] == ["flights", "world", "flights.flights"]


def test_no_schedule_repeats_the_work_of_another(deployed: dict[str, dict[str, Any]]) -> None:
    """Each tool is collected by one schedule, and the processing and the pipeline have none."""
    scheduled = [name for name, known in deployed.items() if known["schedules"]]
    collected = [tool for name in scheduled for tool in deployed[name]["parameters"].get("tools", [])]
    assert sorted(collected) == sorted(set(collected))
    assert {"flights", "world", "maintenance"} == set(scheduled)


def test_serve_refuses_to_repeat_the_work_of_a_work_pool(
    server: Api, deployed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve.py` refuses in words while a work pool has active schedules of the same work, and changes nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.path", sys.path.copy())
    twice = "^collection/world, maintenance/maintenance: active schedules of the work pool local"
    with pytest.raises(SystemExit, match=twice):
        deployments.serve.main()
    assert known_to(server) == deployed
