"""The page that `make ui` opens after a run of the pipeline, in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect, sync_playwright

from tests.servers import ROOT, Server, poll, running

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def needs_chromium() -> None:
    """Skip the test if there is no browser; in CI, fail it."""
    if not CHROMIUM.exists():
        missing = f"{CHROMIUM} is missing: apt-get install chromium"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a real browser."""
    needs_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1440, "height": 1400})
        browser.close()


@pytest.fixture(scope="module")
def ran(user_env: dict[str, str], small_config: Path) -> str:
    """The id of a finished run of the pipeline; its embedded server has ended too."""
    command = [sys.executable, "flows/pipeline.py"]
    done = subprocess.run(command, env=user_env, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    lake = Path(yaml.safe_load(small_config.read_text())["lake"])
    return str(json.loads((lake / "last_run.json").read_text())["flow_run_id"])


@pytest.fixture(scope="module")
def url(ran: str, user_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `make ui` prints, while its server runs."""
    log = tmp_path_factory.mktemp("ui") / "ui.log"
    with running([sys.executable, "deployments/ui.py"], env=user_env, cwd=ROOT, log=log):
        printed = poll(lambda: re.search(r"^http\S+$", log.read_text(), re.MULTILINE), within=60, what="an address")
        assert printed[0].endswith(f"/runs/flow-run/{ran}")
        yield printed[0]


@pytest.fixture(scope="module")
def task_runs(url: str, ran: str) -> list[dict[str, Any]]:
    server = Server(url=url.partition("/runs")[0], env={})
    wanted = {"flow_runs": {"id": {"any_": [ran]}}, "sort": "EXPECTED_START_TIME_DESC"}
    found: list[dict[str, Any]] = server.call("POST", "/task_runs/filter", wanted)
    return found


def test_the_embedded_server_records_every_final_state(task_runs: list[dict[str, Any]]) -> None:
    """Every task run is Completed on the server, although the embedded server ended with the flow."""
    assert task_runs
    assert {run["state_type"] for run in task_runs} == {"COMPLETED"}


def test_the_page_shows_the_run_and_its_task_runs(
    page: Page, url: str, task_runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The run is Completed, its timeline is drawn, and its task runs have distinct names."""
    page.goto(url)
    expect(page.get_by_text("Completed").first).to_be_visible(timeout=30_000)
    expect(page.locator("canvas").first).to_be_visible(timeout=30_000)
    page.get_by_role("tab", name="Task Runs").or_(page.get_by_text("Task Runs", exact=True)).first.click()
    names = [run["name"] for run in task_runs]
    assert len(set(names)) == len(names)
    expect(page.get_by_text(f"{len(names)} Task runs", exact=True).first).to_be_visible(timeout=30_000)
    for name in names[:5]:  # the page lists the newest first
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=30_000)
    shot = page.screenshot(path=tmp_path / "run.png")
    assert len(shot) > 20_000


def test_the_plot_is_shown_without_its_address(page: Page, url: str, ran: str, tmp_path: Path) -> None:
    """The page shows the plot and does not print the 80,000 characters of its address."""
    base = url.partition("/runs")[0]
    wanted = {"artifacts": {"key": {"any_": ["pipeline-delays"]}, "flow_run_id": {"any_": [ran]}}}
    (artifact,) = Server(url=base, env={}).call("POST", "/artifacts/filter", wanted)
    page.goto(f"{base}/artifacts/artifact/{artifact['id']}")
    picture = page.get_by_role("img", name="Mean departure delay by month and origin")
    expect(picture).to_be_visible(timeout=30_000)
    assert picture.evaluate("it => it.complete && it.naturalWidth") > 300
    assert "base64" not in page.inner_text("body")
    assert len(page.screenshot(path=tmp_path / "delays.png")) > 20_000


def test_the_report_links_to_the_jobs_of_its_run(page: Page, url: str, ran: str) -> None:
    """A link of the report opens the table of the run's jobs, in the UI that shows the report."""
    base = url.partition("/runs")[0]
    wanted = {"artifacts": {"key": {"any_": ["pipeline-report"]}, "flow_run_id": {"any_": [ran]}}}
    (artifact,) = Server(url=base, env={}).call("POST", "/artifacts/filter", wanted)
    page.goto(f"{base}/artifacts/artifact/{artifact['id']}")
    link = page.get_by_role("link", name="all jobs")
    expect(link).to_be_visible(timeout=30_000)
    page.goto(f"{base}{link.get_attribute('href')}")
    expect(page.get_by_text("pipeline-jobs").first).to_be_visible(timeout=30_000)
