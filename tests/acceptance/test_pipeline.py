"""The pipeline as a user runs it: its own process, an empty Prefect home, an embedded server and real data."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from executor_adapter.config import read_yaml
from tests.acceptance.browser import new_page
from tests.api_server import serving
from tests.servers import ROOT, Server, create_database, processes_of, running
from tests.waiting import PATIENCE, wait_for

OTHER_TABLES = {"weather": 26_115, "planes": 3_322, "airports": 1_458, "airlines": 16}
OTHER_REJECTED = {"weather": 1, "airports": 3}
WORLD = "world: 28,298 collected = 28,285 processed + 13 rejected"


@dataclass(frozen=True, kw_only=True)
class Period:
    """The flights that a run collects: which months, what the first job of processing says, rows and rejects."""

    months: tuple[str, ...]
    first_job: str
    flights: int
    rejected: int

    @property
    def tables(self) -> dict[str, int]:
        """The rows of each table."""
        return {"flights": self.flights} | OTHER_TABLES

    @property
    def rejects(self) -> dict[str, int]:
        """The rejected rows of each table that has some."""
        return {"flights": self.rejected} | OTHER_REJECTED

    @property
    def rows(self) -> int:
        return sum(self.tables.values())

    @property
    def summed(self) -> str:
        """What becomes of all rows, as the output says it."""
        rejected = sum(self.rejects.values())
        return f"flights: {self.rows:,} collected = {self.rows - rejected:,} processed + {rejected} rejected"


MONTH = Period(months=("2013-02",), first_job="2013-02: completed, 24,950 rows", flights=24_951, rejected=1)
YEAR = Period(
    months=tuple(f"2013-{month:02}" for month in range(1, 13)),
    first_job="2013-01 to 2013-03 (3): completed, 80,786 rows",
    flights=336_776,
    rejected=4,
)


@dataclass(frozen=True, kw_only=True)
class Home:
    """A user's directory: configuration, lake, and Prefect's home with the embedded server's database."""

    directory: Path
    period: Period = MONTH

    @property
    def lake(self) -> Path:
        return self.directory / "lake"

    @property
    def database(self) -> Path:
        return self.directory / "prefect" / "prefect.db"

    def configure(self, settings: dict[str, Any]) -> None:
        settings = settings | {"lake": "lake"}
        (self.directory / "config.yaml").write_text(yaml.safe_dump(settings))

    @property
    def env(self) -> dict[str, str]:
        """The environment of the user, without any setting of the developer."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "EXECUTOR_ADAPTER_"))
        }
        return inherited | {"PREFECT_HOME": str(self.directory / "prefect"), "NO_COLOR": "1"}

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the pipeline in this directory, as `make run` does in a clone."""
        for name in ("flows", "tasks"):
            with suppress(FileExistsError):
                (self.directory / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "flows.pipeline"]
        return subprocess.run(command, cwd=self.directory, env=self.env, capture_output=True, text=True)

    def rows(self, layer: str, tool: str, table: str) -> int:
        folder = self.lake / layer / tool / table
        return ds.dataset(folder, partitioning="hive").count_rows() if folder.exists() else 0

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Query the database of the embedded server, which has ended."""
        database = sqlite3.connect(self.database)
        try:
            return database.execute(sql).fetchall()
        finally:
            database.close()


def project_settings() -> dict[str, Any]:
    return read_yaml(ROOT / "config.yaml")


def flights_of(period: Period, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the table `flights`, reduced to the months of the period."""
    table: dict[str, Any] = settings["tools"]["flights"]["tables"]["flights"]
    return table | {"windows": list(period.months)}


def one_month(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tool `flights`, reduced to one month of one table."""
    return settings["tools"]["flights"] | {"tables": {"flights": flights_of(MONTH, settings)}}


# --- every job completes ---


@pytest.fixture(
    scope="module",
    params=[pytest.param(MONTH, id="a month"), pytest.param(YEAR, id="a year", marks=pytest.mark.nightly)],
)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(directory=tmp_path_factory.mktemp("home"), period=request.param)
    if home.period is MONTH:  # The first run of the year creates it.
        home.database.parent.mkdir()
        create_database(home.database.parent)
    settings = project_settings()
    settings["tools"]["flights"]["tables"]["flights"] = flights_of(home.period, settings)
    home.configure(settings)
    return home


@pytest.fixture(scope="module")
def first(home: Home) -> str:
    """The output of the first run with the project's configuration."""
    done = home.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert errors_of(done) == []
    return done.stdout


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on stderr, without those that say what the demo waits for."""
    return [line for line in done.stderr.splitlines() if not line.startswith("Prefect server: ")]


def test_every_row_of_every_table_is_collected(home: Home, first: str) -> None:
    """The lake holds every row of every table, in its windows."""
    for table, rows in home.period.tables.items():
        assert home.rows("raw", "flights", table) == rows
    assert len(list((home.lake / "raw/flights/flights").iterdir())) == len(home.period.months)
    types = ds.dataset(home.lake / "raw/flights/flights", partitioning="hive").schema
    assert (str(types.field("dep_delay").type), str(types.field("time_hour").type)) == (
        "int64",
        "timestamp[us, tz=UTC]",
    )
    assert f"flights: {home.period.rows:,} new rows" in first
    assert "world: 28,298 new rows" in first


def test_rows_are_conserved_and_reported(home: Home, first: str) -> None:
    """All rows are processed or rejected; the year has eight impossible ones: tail numbers, a wind, airports."""
    for table, rows in home.period.tables.items():
        kept, rejected = home.rows("processed", "flights", table), home.rows("rejected", "flights", table)
        assert (kept + rejected, rejected) == (rows, home.period.rejects.get(table, 0))
    assert home.period.summed in first
    assert WORLD in first
    assert "rejected: 1 row of flights.weather: wind_speed" in first


def test_the_summary_names_jobs_data_and_ui(home: Home, first: str) -> None:
    """The output names the jobs, the lake, the UI and the summary of the flights."""
    period = home.period
    assert f"collect flights flights flights.csv.zip: completed, {period.flights:,} rows" in first
    assert f"process flights flights {period.first_job}" in first
    assert f"data: {home.lake}" in first
    assert "make ui" in first
    assert f"{period.flights - period.rejected:,}" in first  # the number of valid flights, in the summary
    assert (home.lake / "reports/flights/summary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("first")
def test_the_embedded_server_records_every_final_state(home: Home) -> None:
    """Every task run is Completed on the embedded server, which ends with the flow."""
    assert home.query("select state_name, count(*) from flow_run group by 1") == [("Completed", 1)]
    ((state, number),) = home.query("select state_type, count(*) from task_run group by 1")
    # The run has searched each of six tables, collected and processed it, and summarised the flights.
    assert (state, number >= 6 + 6 + 6 + 1) == ("COMPLETED", True)


@pytest.mark.usefixtures("first")
def test_task_runs_have_distinct_names_and_ask_for_no_slot(home: Home) -> None:
    """Task runs have distinct names, and no tags, for which a slot would be asked for; the flow run has its own."""
    assert home.query("select count(*) from task_run where name like 'collect flights/flights%'") == [(1,)]
    assert {tags for (tags,) in home.query("select tags from task_run")} == {"[]"}
    assert {tags for (tags,) in home.query("select tags from flow_run")} == {'["pipeline"]'}
    assert home.query("select flow_run_id, name from task_run group by 1, 2 having count(*) > 1") == []


@pytest.mark.usefixtures("first")
def test_prefect_shows_progress_jobs_rows_and_plot(home: Home) -> None:
    """The run has artifacts for its progress, its jobs, and its rows with the plot."""
    found = home.query("select key, type, data from artifact order by created")
    # SQLite returns a JSON number as a number.
    latest = {key: (kind, json.loads(content) if isinstance(content, str) else content) for key, kind, content in found}
    assert latest["pipeline-progress"] == ("progress", 100)
    assert latest["pipeline-jobs"][0] == "table"
    assert "Completed: 100.0%" in latest["pipeline-report"][1]
    kind, text = latest["pipeline-rows"]
    assert kind == "markdown"
    rejected = text.partition("## Rejected rows, by reason")[2].partition("\n## ")[0]
    rows = dict.fromkeys(("flights", "world"), 0)
    for number, tool in re.findall(r"^- rejected: (\d+) rows? of (\w+)\.", rejected, re.MULTILINE):
        rows[tool] += int(number)
    assert rows == {"flights": sum(home.period.rejects.values()), "world": 13}
    assert "](data:image/png;base64,iVBOR" in text


# --- a second run ---


@pytest.fixture(scope="module")
def second(home: Home, first: str) -> str:
    """The output of the next run; the database has two runs from then on."""
    done = home.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly
def test_a_second_run_collects_nothing_twice(home: Home, second: str) -> None:
    """A second run collects no row again and reports it."""
    for table, rows in home.period.tables.items():
        assert home.rows("raw", "flights", table) == rows
    assert f"flights: 0 new rows; {home.period.rows:,} were there before" in second
    assert home.period.summed in second
    assert WORLD in second
    assert second.count("completed (already_collected)") == len(home.period.tables) + 1
    assert not re.search(r"^process ", second, re.MULTILINE)  # No job for what is processed.
    assert home.query("select state_name, count(*) from flow_run group by 1") == [("Completed", 2)]


# --- a tool fails ---


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, subprocess.CompletedProcess[str]]]:
    """A run with four tools: one works, one is down, one answers 500, one sends broken JSON."""
    home = Home(directory=tmp_path_factory.mktemp("failing"))
    home.database.parent.mkdir()
    create_database(home.database.parent)
    settings = project_settings()
    with (
        serving(lambda path, body: (500, {}, b"out of order")) as (failing, _),
        serving(lambda path, body: (200, {"Content-Type": "application/json"}, b'[{"id": ')) as (broken, _),
    ):
        with serving(lambda path, body: (200, {}, b"[]")) as (down, _):
            pass  # the server has ended, so its port refuses connections

        tools = {
            name: {"source": "rest", "url": url, "days": 0, "resources": {"orders": {"path": "/orders"}}}
            for name, url in (("down", down), ("failing", failing), ("broken", broken))
        }
        home.configure(
            settings
            | {
                "collection": {"retry_attempts": 1, "retry_delay": 0.1},
                "tools": {"flights": one_month(settings), **tools},
            }
        )
        yield home, home.run()


@pytest.mark.nightly
def test_a_failing_tool_ends_the_run_with_exit_code_1(
    failed: tuple[Home, subprocess.CompletedProcess[str]],
) -> None:
    """Failed jobs are reported with their codes; only failures that can pass are retried."""
    home, done = failed
    (day,) = {path.name for path in home.lake.glob("landing/failing/orders/*")}
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"failed: collect down orders {day}: NETWORK_ERROR after 2 attempts" in done.stdout
    assert f"failed: collect failing orders {day}: API_ERROR after 2 attempts" in done.stdout
    assert f"failed: collect broken orders {day}: DATA_ERROR after 1 attempt:" in done.stdout
    (error,) = errors_of(done)
    assert "3 of " in error


@pytest.mark.nightly
def test_the_rows_of_the_working_tool_are_kept(failed: tuple[Home, subprocess.CompletedProcess[str]]) -> None:
    """A failing tool does not affect the rows of another tool."""
    home, done = failed
    assert home.rows("raw", "flights", "flights") == 24_951
    assert "flights: 24,951 collected = 24,950 processed + 1 rejected" in done.stdout


@pytest.mark.nightly
def test_prefect_shows_the_error_code_of_a_failed_job(failed: tuple[Home, subprocess.CompletedProcess[str]]) -> None:
    """The Failed state of a task run begins with the error code; every task run is final."""
    home, _ = failed
    ended = home.query(
        "select r.name, s.name, s.message from task_run r join task_run_state s on s.id = r.state_id"
        " where r.name like 'collect %/orders %' order by r.name"
    )
    assert [(name.rpartition(" ")[0], state) for name, state, _ in ended] == [
        ("collect broken/orders", "Failed"),
        ("collect down/orders", "Failed"),
        ("collect failing/orders", "Failed"),
    ]
    codes = [message.partition(":")[0] for _, _, message in ended]
    assert codes == ["DATA_ERROR", "NETWORK_ERROR", "API_ERROR"]
    assert home.query("select state_name from flow_run") == [("Failed",)]
    final = "('COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED')"
    assert home.query(f"select name from task_run where state_type not in {final}") == []


# --- the configuration is wrong ---


def test_a_wrong_configuration_ends_with_exit_code_2(tmp_path: Path) -> None:
    """A wrong configuration prints one line and starts no server, database or lake."""
    home = Home(directory=tmp_path)
    home.configure(project_settings() | {"collection": {"job_timeout": -5}})
    done = home.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("config.yaml: collection.job_timeout: -5 is not allowed: must be")
    assert done.stderr.count("\n") == 1
    assert not home.database.exists()
    assert not home.lake.exists()


# --- the page that `make ui` opens after a run, in a real browser ---


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return new_page(browser, 1440, 1400)


@pytest.fixture(scope="module")
def ran(home: Home, second: str) -> str:
    """The id of the second run; its embedded server has ended too."""
    ((run_id,),) = home.query("SELECT id FROM flow_run WHERE name LIKE 'pipeline %' ORDER BY start_time DESC LIMIT 1")
    return str(run_id)


@pytest.fixture(scope="module")
def url(home: Home, ran: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `make ui` prints, while its server runs."""
    log = tmp_path_factory.mktemp("ui") / "ui.log"
    command = [sys.executable, str(ROOT / "deployments" / "ui.py")]
    with running(command, env=home.env, cwd=home.directory, log=log):
        printed = wait_for(lambda: re.search(r"^http\S+$", log.read_text(), re.MULTILINE), what="an address")
        assert printed[0].endswith(f"/runs/flow-run/{ran}")
        yield printed[0]


@pytest.mark.parametrize("status", [None, 401])
def test_a_server_that_is_away_or_refuses_has_no_ui(home: Home, status: int | None) -> None:
    """It is said in one line, without the password of its address."""
    command = [sys.executable, str(ROOT / "deployments" / "ui.py")]
    with serving(lambda *_: (status or 200, {}, b"")) as (url, asked):
        address = "http://me:hush@127.0.0.1:9" if status is None else url.replace("//", "//me:hush@")
        env = home.env | {"PREFECT_API_URL": f"{address}/api"}
        done = subprocess.run(command, env=env, cwd=home.directory, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "PREFECT_API_URL does not answer" in done.stderr
    assert "hush" not in done.stderr
    assert bool(asked) == (status == 401)


@pytest.mark.nightly
def test_the_server_of_the_ui_ends_with_a_program_that_is_terminated(home: Home, ran: str, tmp_path: Path) -> None:
    """SIGTERM ends `make ui` as Ctrl-C does: no server stays behind."""
    mark = f"UI_OF_TEST={tmp_path}"
    env = home.env | dict([mark.split("=", 1)])
    command = [sys.executable, str(ROOT / "deployments" / "ui.py")]
    log = tmp_path / "ui.log"
    with running(command, env=env, cwd=home.directory, log=log) as program:
        wait_for(lambda: re.search(r"^http\S+$", log.read_text(), re.MULTILINE), what="an address")
        assert len(processes_of(mark)) > 1
        program.terminate()
        program.wait(timeout=PATIENCE)
        assert processes_of(mark) == []


@pytest.fixture(scope="module")
def task_runs(url: str, ran: str) -> list[dict[str, Any]]:
    server = Server(url=url.partition("/runs")[0], env={})
    wanted = {"flow_runs": {"id": {"any_": [ran]}}, "sort": "EXPECTED_START_TIME_DESC"}
    found: list[dict[str, Any]] = server.call("POST", "/task_runs/filter", wanted)
    return found


@pytest.mark.nightly
def test_the_server_of_the_ui_has_every_final_state(task_runs: list[dict[str, Any]]) -> None:
    """Every task run is Completed on the server, although the embedded server ended with the flow."""
    assert task_runs
    assert {run["state_type"] for run in task_runs} == {"COMPLETED"}


@pytest.mark.nightly
def test_the_page_shows_the_run_and_its_task_runs(
    page: Page, url: str, task_runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The run is Completed, its timeline is drawn, and its task runs have distinct names."""
    page.goto(url)
    expect(page.get_by_text("Completed").first).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()
    page.get_by_role("tab", name="Task Runs").or_(page.get_by_text("Task Runs", exact=True)).first.click()
    names = [run["name"] for run in task_runs]
    assert len(set(names)) == len(names)
    expect(page.get_by_text(f"{len(names)} Task runs", exact=True).first).to_be_visible()
    for name in names[:5]:  # the page lists the newest first
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    shot = page.screenshot(path=tmp_path / "run.png")
    assert len(shot) > 20_000


@pytest.mark.nightly
def test_the_plot_is_shown_without_its_address(page: Page, url: str, ran: str, tmp_path: Path) -> None:
    """The page shows the plot and does not print the 80,000 characters of its address."""
    base = url.partition("/runs")[0]
    wanted = {"artifacts": {"key": {"any_": ["pipeline-rows"]}, "flow_run_id": {"any_": [ran]}}}
    (artifact,) = Server(url=base, env={}).call("POST", "/artifacts/filter", wanted)
    page.goto(f"{base}/artifacts/artifact/{artifact['id']}")
    picture = page.get_by_role("img", name="Mean departure delay by month and origin")
    expect(picture).to_be_visible()
    assert picture.evaluate("it => it.complete && it.naturalWidth") > 300
    assert "base64" not in page.inner_text("body")
    assert len(page.screenshot(path=tmp_path / "delays.png")) > 20_000
