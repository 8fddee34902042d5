"""A pipeline of one's own in three steps, in an empty folder and without the project: files, then an API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline import write_starter
from tests.pipeline.hostile_server import Answer, Request, as_json, serving
from tests.servers import ROOT, create_database
from tests.waiting import PATIENCE

RULES = """
import pandas as pd
from executor_adapter.pipeline.flows import Summary

def only_adults(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(_reason=(rows["age"] < 18).map({True: "is young", False: None}))

def summarise(tables: dict) -> Summary:
    return Summary(lines=[f"{sum(each.rows for each in tables['people'].processed.windows().values())} adults"])
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, as the user of an installed package does."""
    home = folder / "prefect"
    if not home.exists():
        home.mkdir()
        create_database(home)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "EXECUTOR_"))}
    env = inherited | {"PREFECT_HOME": str(home), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "executor_adapter.cli", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_pipeline_of_ones_own_takes_three_steps(tmp_path: Path) -> None:
    """Configuration, one module, run: the files of the starter, and an API beside them with a module of its own.

    Rows are typed, rejected with reasons, counted, and summarised by one's own functions.
    """
    command(tmp_path, "pipeline", "init")
    people = [{"id": number, "age": 10 + number} for number in range(1, 21)]

    def respond(request: Request) -> Answer:
        start = int(request.query["offset"])
        return as_json({"people": people[start : start + 7], "total": len(people)})

    with serving(respond) as api:
        resource = {
            "path": "/people",
            "records": "people",
            "schema": {"columns": {"id": "text", "age": "integer"}},
            "steps": ["my_people:only_adults"],
        }
        club = {
            "source": "rest",
            "url": api.url,
            "days": 0,
            "paging": {"by": "offset", "total": "total"},
            "summary": "my_people:summarise",
            "resources": {"people": resource},
        }
        settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
        settings["tools"]["club"] = club
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        (tmp_path / "my_people.py").write_text(RULES)
        assert "config.yaml: fine" in command(tmp_path, "config", "check").stdout
        done = command(tmp_path, "pipeline", "run")
    assert "shop: 5 collected = 2 processed + 2 rejected + 1 dropped" in done.stdout
    assert "2 orders for 20.50 in all" in done.stdout
    assert "club: 20 collected = 13 processed + 7 rejected" in done.stdout
    assert "13 adults" in done.stdout
    rows = ds.dataset(tmp_path / "data/processed/shop/orders", partitioning="hive").to_table().to_pylist()
    assert [(row["id"], row["country"], str(row["price"]), row["window"]) for row in rows] == [
        ("1", "DE", "12.50", "2026-01"),
        ("2", "FR", "8.00", "2026-01"),
    ]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A file that is there already is named, and nothing is written."""
    (tmp_path / "config.yaml").write_text("lake: mine\n")
    with pytest.raises(ConfigurationError, match=r"config\.yaml is there already: choose an empty folder"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
