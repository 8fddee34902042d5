"""A pipeline of one's own in three steps, in an empty folder and without the project: files, then an API.

It runs on the server of all tests; acceptance/test_pipeline.py runs the demo on one that a flow starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import yaml
from pytest_mock import MockerFixture

from executor_adapter.cli import main
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline import write_starter
from tests.pipeline.hostile_server import Answer, Request, as_json, serving

RULES = """
import pandas as pd
from executor_adapter.pipeline.flows import Summary

def only_adults(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(_reason=(rows["age"] < 18).map({True: "is young", False: None}))

def summarise(tables: dict) -> Summary:
    return Summary(lines=[f"{sum(each.rows for each in tables['people'].processed.windows().values())} adults"])
"""


def run(*arguments: str) -> None:
    """Run the command, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mocker: MockerFixture) -> Iterator[Path]:
    """The folder of a pipeline, in which the commands run; its modules are forgotten."""
    mocker.patch.dict("os.environ")  # The command sets variables, for a program of its own.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", str(tmp_path / "config.yaml"))
    yield tmp_path
    for name in ("my_rules", "my_people"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("prefect_api", "in_threads")
def test_a_pipeline_of_ones_own_takes_three_steps(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Configuration, one module, run: the files of the starter, and an API beside them with a module of its own.

    Rows are typed, rejected with reasons, counted, and summarised by one's own functions.
    """
    run("pipeline", "init")
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
        settings = yaml.safe_load((home / "config.yaml").read_text())
        settings["tools"]["club"] = club
        (home / "config.yaml").write_text(yaml.safe_dump(settings))
        (home / "my_people.py").write_text(RULES)
        run("pipeline", "run")
    said = capsys.readouterr().out
    assert "shop: 5 new rows (orders orders.csv)\n" in said
    assert "shop: 5 collected = 2 processed + 2 rejected + 1 dropped by deduplicate\n" in said
    assert "2 orders for 20.50 in all" in said
    assert "club: 20 collected = 13 processed + 7 rejected" in said
    assert "13 adults" in said
    rows = ds.dataset(home / "data/processed/shop/orders", partitioning="hive").to_table().to_pylist()
    assert [(row["id"], row["country"], str(row["price"]), row["window"]) for row in rows] == [
        ("1", "DE", "12.50", "orders.csv"),
        ("2", "FR", "8.00", "orders.csv"),
    ]


@pytest.mark.usefixtures("prefect_api", "in_threads")
def test_the_starter_takes_files_that_are_dropped_daily(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One more file adds its orders; one that comes late changes none that is newer; one that is gone takes its own."""
    run("pipeline", "init")
    run("config", "check")
    header = "id,day,country,price,changed\n"
    (home / "inbox/orders-2.csv").write_text(
        f"{header}1,2026-01-30,de,99.00,2026-01-29\n5,2026-01-31,fr,1,2026-02-03\n"
    )
    run("pipeline", "run")
    assert "3 orders for 21.50 in all" in capsys.readouterr().out
    (home / "inbox/orders-2.csv").write_text(f"{header}1,2026-01-30,de,10,2026-02-04\n")  # It was corrected.
    run("pipeline", "run")
    assert "2 orders for 18.00 in all" in capsys.readouterr().out
    (home / "inbox/orders-2.csv").unlink()
    run("pipeline", "run")
    assert "2 orders for 20.50 in all" in capsys.readouterr().out


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A file that is there already is named, and nothing is written."""
    (tmp_path / "config.yaml").write_text("lake: mine\n")
    with pytest.raises(ConfigurationError, match=r"config\.yaml is there already: choose an empty folder"):
        write_starter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
