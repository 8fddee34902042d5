"""Every state of the table of job statuses, as Prefect's own UI shows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.acceptance.browser import new_page
from tests.acceptance.every_state import FINISHED, UNFINISHED
from tests.servers import ROOT, Server, new_user_env, running
from tests.shared_server import shared_server
from tests.waiting import wait_for

STATES = [*FINISHED, *UNFINISHED]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The server of all tests, with a home of this test."""
    with shared_server() as url:
        yield Server(url=url.removesuffix("/api"), env=new_user_env(tmp_path, PREFECT_API_URL=url))


@pytest.fixture
def flow_run(server: Server, tmp_path: Path) -> Iterator[str]:
    """Start a flow run with a task run in each state, which stays so during the test."""
    command = [sys.executable, str(ROOT / "tests" / "acceptance" / "every_state.py"), str(tmp_path)]
    with running(command, env=server.env, cwd=tmp_path, log=tmp_path / "flow.log"):
        there = tmp_path / "there"
        flow_run_id = wait_for(lambda: there.exists() and there.read_text(), what="a task run in every state")
        wait_for(lambda: set(_states(server, flow_run_id)) == set(STATES), what="all states on the server")
        yield flow_run_id
        (tmp_path / "seen").touch()
        wait_for(lambda: _state(server, flow_run_id) == "Completed", what="the flow's end")


def _states(server: Server, flow_run_id: str) -> dict[str, str]:
    """Return the task runs' names by state. Each is named after the state that it should have.

    Prefect gives a task run that name when it starts; before, a number follows the name.
    """
    runs = server.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    return {run["state_name"]: run["name"] for run in runs}


def _state(server: Server, flow_run_id: str) -> str:
    return str(server.call("GET", f"/flow_runs/{flow_run_id}")["state_name"])


@pytest.mark.nightly
def test_the_page_of_a_run_names_every_state(browser: Browser, server: Server, flow_run: str, tmp_path: Path) -> None:
    """Task runs in each of the ten states are listed with that state's name."""
    names = _states(server, flow_run)
    assert {state: name.partition("-")[0] for state, name in names.items()} == {state: state for state in STATES}
    page = new_page(browser, 1440, 2200)
    page.goto(f"{server.url}/runs/flow-run/{flow_run}")
    page.get_by_role("tab", name="Task Runs").or_(page.get_by_text("Task Runs", exact=True)).first.click()
    expect(page.get_by_text(f"{len(STATES)} Task runs", exact=True).first).to_be_visible()
    for state, name in names.items():
        listed = page.locator(".task-run-list-item", has=page.get_by_role("link", name=name, exact=True))
        expect(listed.locator(".state-badge")).to_have_text(state)
    assert len(page.screenshot(path=tmp_path / "states.png")) > 20_000
