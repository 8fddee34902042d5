"""The main job as a user runs it: a process, an empty Prefect home, an embedded server, real input."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import yaml

from tests.api_server import serving

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = 336_776
TABLES = {"flights": FLIGHTS, "weather": 26_115, "planes": 3_322, "airports": 1_458, "airlines": 16}

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, kw_only=True)
class Home:
    """A user's own directory: configuration, lake, and Prefect's home with the embedded server's database."""

    directory: Path

    @property
    def lake(self) -> Path:
        return self.directory / "lake"

    @property
    def database(self) -> Path:
        return self.directory / "prefect" / "prefect.db"

    def configure(self, settings: dict[str, Any]) -> None:
        settings = settings | {"lake": "lake"}
        (self.directory / "config.yaml").write_text(yaml.safe_dump(settings))

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the pipeline from here, without any setting of the developer's own."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "EXECUTOR_ADAPTER_"))
        }
        env = inherited | {"PREFECT_HOME": str(self.directory / "prefect"), "NO_COLOR": "1"}
        command = [sys.executable, str(ROOT / "flows" / "pipeline.py")]
        return subprocess.run(command, cwd=self.directory, env=env, capture_output=True, text=True, timeout=240)

    def rows(self, layer: str, tool: str, table: str) -> int:
        files = [str(path) for path in (self.lake / layer / tool / table).glob("*/part.parquet")]
        return sum(ds.dataset(file).count_rows() for file in files)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database of the embedded server, which has ended."""
        database = sqlite3.connect(self.database)
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()


def project_settings() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text())
    return settings


def one_month(settings: dict[str, Any]) -> dict[str, Any]:
    """The tool `flights` cut down to a month."""
    tool: dict[str, Any] = settings["tools"]["flights"]
    return tool | {"tables": {"flights": tool["tables"]["flights"] | {"windows": ["2013-02"]}}}


# --- all is well ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(directory=tmp_path_factory.mktemp("home"))
    home.configure(project_settings())
    return home


@pytest.fixture(scope="module")
def first(home: Home) -> str:
    """What the first run printed, of the project's own configuration."""
    done = home.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def second(home: Home, first: str) -> str:
    done = home.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_row_of_every_table_is_collected(home: Home, first: str) -> None:
    for table, rows in TABLES.items():
        assert home.rows("raw", "flights", table) == rows
    assert len(list((home.lake / "raw/flights/flights").iterdir())) == 12
    assert f"flights: {sum(TABLES.values()):,} new rows" in first


def test_rows_are_conserved_and_the_run_says_so(home: Home, first: str) -> None:
    """Of the real data eight rows cannot be: four tail numbers, a wind of 1,048 miles an hour, three airports."""
    for table, rows in TABLES.items():
        kept, rejected = home.rows("processed", "flights", table), home.rows("rejects", "flights", table)
        assert (kept + rejected, rejected) == (rows, {"flights": 4, "weather": 1, "airports": 3}.get(table, 0))
    assert "flights: 367,687 collected = 367,679 processed + 8 rejected" in first
    history = json.loads((home.lake / "last_run.json").read_text())
    assert history["name"].startswith("pipeline ")


def test_the_summary_names_jobs_data_and_ui(home: Home, first: str) -> None:
    assert "collect flights flights 2013-01: completed, 27,004 rows" in first
    assert f"data: {home.lake}" in first
    assert "make ui" in first
    assert "336,772" in first  # the flights that are summed up
    assert (home.lake / "reports/flights/flights.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_collects_nothing_twice_and_says_so(home: Home, second: str) -> None:
    for table, rows in TABLES.items():
        assert home.rows("raw", "flights", table) == rows
    assert "flights: 0 new rows; 367,687 were already collected, and not collected again" in second
    assert "flights: 367,687 collected = 367,679 processed + 8 rejected" in second
    assert second.count("completed (already_collected)") >= 16


def test_the_second_run_tells_of_the_first(home: Home, second: str) -> None:
    """Its history is collected from the embedded server's API, and each run and state is in it once."""
    assert "flow runs: 1 are over, 100.0% of them succeeded" in second
    for table in ("flow_runs", "task_runs", "flow_run_states", "task_run_states"):
        files = [str(path) for path in (home.lake / "raw/prefect" / table).glob("*/part.parquet")]
        ids = [key for file in files for key in ds.dataset(file).to_table().to_pydict().get("id", [])]
        assert len(ids) == len(set(ids))
        assert ids


@pytest.mark.usefixtures("second")
def test_the_embedded_server_knew_every_task_run_to_its_end(home: Home) -> None:
    """... and nothing is lost though it ended with the flow."""
    assert home.ask("select state_name, count(*) from flow_run group by 1") == [("Completed", 2)]
    states = home.ask("select flow_run_id, state_type, count(*) from task_run group by 1, 2")
    assert {state for _, state, _ in states} == {"COMPLETED"}
    # Five tables looked at, 16 windows and 4 resources collected, 16 partitions and those of the history processed.
    assert all(count >= 5 + 16 + 4 + 16 + 2 for _, _, count in states)


@pytest.mark.usefixtures("second")
def test_task_runs_have_names_and_tags_that_tell_them_apart(home: Home) -> None:
    named = home.ask("select name, tags from task_run where name like 'collect flights/flights%' limit 1")
    assert {"pipeline", "collect", "flights"} <= set(json.loads(named[0][1]))
    assert home.ask("select flow_run_id, name from task_run group by 1, 2 having count(*) > 1") == []


@pytest.mark.usefixtures("second")
def test_prefect_shows_progress_jobs_report_and_plot(home: Home) -> None:
    found = home.ask("select key, type, data from artifact order by created")
    # SQLite gives a JSON number as a number.
    latest = {key: (kind, json.loads(content) if isinstance(content, str) else content) for key, kind, content in found}
    assert latest["progress"] == ("progress", 100)
    assert latest["jobs"][0] == "table"
    rows = latest["jobs"][1]
    rows = json.loads(rows) if isinstance(rows, str) else rows
    assert {"tool", "stage", "job", "pool", "attempts", "seconds", "rows", "state"} == set(rows[0])
    kind, text = latest["report"]
    assert kind == "markdown"
    assert "| success rate | average duration |" in text
    assert "| 100.0% |" in text
    assert latest["delays"][0] == "markdown"
    assert "](data:image/png;base64,iVBOR" in latest["delays"][1]


# --- a tool fails ---


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, subprocess.CompletedProcess[str]]]:
    """A run with four tools: one is well, one is down, one answers 500, one sends broken JSON."""
    home = Home(directory=tmp_path_factory.mktemp("failing"))
    settings = project_settings()
    with (
        serving(lambda path, body: (500, {}, b"out of order")) as (failing, _),
        serving(lambda path, body: (200, {}, b'[{"id": ')) as (broken, _),
    ):
        with serving(lambda path, body: (200, {}, b"[]")) as (down, _):
            pass  # it has ended: its port refuses connections

        tools = {
            name: {"source": "rest", "url": url, "resources": {"orders": {"path": "/orders"}}}
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


def test_a_failing_tool_ends_the_run_with_1_and_its_error_codes(
    failed: tuple[Home, subprocess.CompletedProcess[str]],
) -> None:
    """Once retried where that makes sense: broken JSON would be broken again."""
    _, done = failed
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: collect down orders: NETWORK_ERROR after 2 attempts" in done.stdout
    assert "failed: collect failing orders: API_ERROR after 2 attempts" in done.stdout
    assert "failed: collect broken orders: DATA_ERROR after 1 attempt:" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "3 of " in done.stderr


def test_the_work_of_the_other_tool_is_kept(failed: tuple[Home, subprocess.CompletedProcess[str]]) -> None:
    home, done = failed
    assert home.rows("raw", "flights", "flights") == 24_951
    assert "flights: 24,951 collected = 24,950 processed + 1 rejected" in done.stdout


def test_prefect_shows_the_error_code_of_a_failed_job(failed: tuple[Home, subprocess.CompletedProcess[str]]) -> None:
    home, _ = failed
    ended = home.ask(
        "select r.name, s.name, s.message from task_run r join task_run_state s on s.id = r.state_id"
        " where r.name like 'collect %/orders' order by r.name"
    )
    assert [(name, state) for name, state, _ in ended] == [
        ("collect broken/orders", "Failed"),
        ("collect down/orders", "Failed"),
        ("collect failing/orders", "Failed"),
    ]
    codes = [message.partition(":")[0] for _, _, message in ended]
    assert codes == ["DATA_ERROR", "NETWORK_ERROR", "API_ERROR"]
    assert home.ask("select state_name from flow_run") == [("Failed",)]
    final = "('COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED')"
    assert home.ask(f"select name from task_run where state_type not in {final}") == []


# --- the configuration is wrong ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"collection": {"job_timeout": -5}}, "config.yaml: collection.job_timeout: -5 is not allowed: must be"),
        ({"colection": {}}, "config.yaml: colection is not a key: did you mean collection? allowed are"),
        ({"tools": {}}, "tools is missing: describe at least one tool in config.yaml"),
        (
            {"tools": {"t": {"source": "files", "package": "p", "tables": {"a": {"file": "f", "schema": "flight"}}}}},
            "tools.t.tables.a.schema: 'flight' is not allowed: did you mean flights? must be one of",
        ),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """... and nothing was started: no server, no database, no lake."""
    home = Home(directory=tmp_path)
    home.configure(project_settings() | change)
    done = home.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert not home.database.exists()
    assert not home.lake.exists()
