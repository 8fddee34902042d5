"""`pipeline status|windows|rejects`, and what names of tables they take."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from executor_adapter.cli import output, pipeline
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline import ConfiguredTable, collect_windows, find_windows, process_windows, select_tables
from executor_adapter.pipeline.tables import check_range
from tests.cli.conftest import Command

ROWS = "id,day\n1,2024-01-01\n\x1b[2Jx,2024-01-01\n2,2024-01-03\n2,2024-01-03\n3\n"


@pytest.fixture
def orders(home: Path) -> ConfiguredTable:
    """A table of two days, of which a step, a type and a line have rejected a row each."""
    (home / "inbox").mkdir()
    (home / "inbox/jan.csv").write_text(ROWS)
    table = {
        "file": "*.csv",
        "partition": "day",
        "period": "day",
        "expect": "daily",
        "schema": {"columns": {"id": "integer", "day": "date"}},
        "steps": [{"deduplicate": {"key": "id", "reject": True}}],
    }
    tool = {"source": "files", "directory": "inbox", "tables": {"orders": table}}
    (home / "config.yaml").write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": tool}}))
    (found,) = select_tables(load_config())
    return found


@pytest.fixture
def done(orders: ConfiguredTable) -> ConfiguredTable:
    """The same table once it is collected and processed."""
    collect_windows(orders, find_windows(orders))
    process_windows(orders, list(orders.raw.windows()))
    return orders


def test_the_status_of_a_table_says_what_is_late_missing_and_rejected(command: Command, done: ConfiguredTable) -> None:
    """Its rows are counted wherever they are, and the days that it lacks are named."""
    (found,) = command("pipeline", "status", "--json").json
    assert found["missing"][:2] == ["2024-01-02", "2024-01-04"]
    expected = {"table": "shop.orders", "rows": 5, "processed": 2, "rejected": 3, "unprocessed": 0, "windows": 2}
    assert {name: found[name] for name in expected} == expected
    assert found["late_seconds"] is None
    header, row = command("pipeline", "status").out.splitlines()
    columns = ["TABLE", "COLLECTED", "ROWS", "PROCESSED", "REJECTED", "UNPROCESSED", "WINDOWS", "MISSING"]
    assert header.split() == columns
    assert "shop.orders" in row
    assert "2024-01-02 and " in row


def test_a_table_is_collected_where_nothing_is_new_too(command: Command, done: ConfiguredTable) -> None:
    """Its status says when the source was last asked, and not when its rows came."""
    for file in (done.raw.state / "landings").iterdir():
        os.utime(file, (0, 0))
    (before,) = command("pipeline", "status", "--json").json
    assert collect_windows(done, find_windows(done))["status"] == "already_collected"
    (after,) = command("pipeline", "status", "--json").json
    assert (before["collected_at"][:4], after["collected_at"][:2]) == ("1970", "20")


def test_rules_beside_a_configuration_elsewhere_are_found(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another folder all rows are processed too; where the module is nowhere, or ends the program, it is said."""
    folder = home / "project"
    (folder / "inbox").mkdir(parents=True)
    (folder / "inbox/jan.csv").write_text("id\n1\n2\n")
    (folder / "rules_elsewhere.py").write_text("def same(rows):\n    return rows\n")
    tool = {"source": "files", "tables": {"orders": {"file": "*.csv", "steps": ["rules_elsewhere:same"]}}}
    settings = {"lake": str(folder / "lake"), "tools": {"shop": tool | {"directory": str(folder / "inbox")}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with monkeypatch.context() as patch:
        patch.syspath_prepend(folder)
        (orders,) = select_tables(load_config(folder / "config.yaml"))
        collect_windows(orders, find_windows(orders))
        process_windows(orders, list(orders.raw.windows()))
    sys.modules.pop("rules_elsewhere")
    words = ("pipeline", "status", "--config", "project/config.yaml", "--json")
    (found,) = command(*words).json
    assert (found["rows"], found["unprocessed"]) == (2, 0)
    (folder / "rules_elsewhere.py").unlink()
    said = "tools.shop.tables.orders.steps: 'rules_elsewhere:same' cannot be imported: "
    refused = command(*words)
    assert (refused.code, f"{said}ModuleNotFoundError" in refused.err) == (2, True)
    assert command("pipeline", "rebuild", "shop.orders", *words[2:4]).code == 2
    assert len(list((folder / "lake/processed").rglob("*.parquet"))) == 1  # Nothing was touched.
    (folder / "rules_elsewhere").mkdir()
    (folder / "rules_elsewhere/__init__.py").write_text("raise SystemExit('no')\n")
    text = yaml.safe_dump(settings).replace("rules_elsewhere:same", "rules_elsewhere.orders:same")
    (folder / "config.yaml").write_text(text)
    refused = command(*words)
    assert (refused.code, "SystemExit: no" in refused.err) == (2, True)


def test_a_table_without_rows_has_a_status(command: Command, orders: ConfiguredTable) -> None:
    """It was never collected, and its source is not asked."""
    assert "never" in command("pipeline", "status").out
    assert command("pipeline", "windows", "shop.orders") == (0, "", "")


def test_a_table_whose_deliveries_had_no_row_was_collected(
    command: Command, orders: ConfiguredTable, home: Path
) -> None:
    """Its status says when the last delivery was stored, and that there are 0 rows."""
    (home / "inbox/jan.csv").write_text("id,day\n")
    collect_windows(orders, find_windows(orders))
    (found,) = command("pipeline", "status", "--json").json
    assert (found["collected_at"][:2], found["rows"], found["windows"]) == ("20", 0, 0)
    assert "never" not in command("pipeline", "status").out


def test_the_windows_of_a_table_say_what_became_of_their_rows(command: Command, done: ConfiguredTable) -> None:
    """A delivery is among them, where it has what is not a row or does not fit."""
    found = {each["name"]: each for each in command("pipeline", "windows", "shop", "--json").json}
    kept = {name: (each["collected"], each["processed"], each["rejected"]) for name, each in found.items()}
    assert kept == {"read jan.csv": (2, 0, 2), "2024-01-01": (1, 1, 0), "2024-01-03": (2, 1, 1)}
    assert found["2024-01-03"]["drops"] == {}
    shown = command("pipeline", "windows", "shop.orders").out
    assert "2024-01-03" in shown
    assert "DROPS" not in shown


def test_what_steps_left_out_is_shown_by_step(command: Command, home: Path, orders: ConfiguredTable) -> None:
    """In words for people, and as an object for programs."""
    (home / "config.yaml").write_text((home / "config.yaml").read_text().replace("reject: true", "reject: false"))
    (table,) = select_tables(load_config())
    collect_windows(table, find_windows(table))
    process_windows(table, list(table.raw.windows()))
    found = {each["name"]: each["drops"] for each in command("pipeline", "windows", "shop", "--json").json}
    assert found["2024-01-03"] == {"deduplicate": 1}
    assert " deduplicate 1 " in command("pipeline", "windows", "shop").out


@pytest.mark.parametrize("width", [80, 200])
def test_rejects_are_shown_by_rule_or_by_row(
    command: Command, done: ConfiguredTable, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a window or a file the rows themselves are shown, and a terminal obeys nothing in them."""
    monkeypatch.setattr(output, "PIPE_WIDTH", width)
    rules = {each["reason"]: each["rows"] for each in command("pipeline", "rejects", "shop.orders", "--json").json}
    assert rules == {
        "another row has this id": 1,
        "has fewer values than there are columns": 1,
        "id: '\\x1b[2Jx' is not an integer of 64 bits": 1,
    }
    (row,) = command("pipeline", "rejects", "shop.orders", "-w", "2024-01-03", "--json").json
    assert (row["step"], row["row"]) == ("deduplicate", 1)
    shown = command("pipeline", "rejects", "shop.orders", "--window", "jan.csv").out
    assert max(map(len, shown.splitlines())) <= width
    assert r"\x1b[2Jx" in shown
    assert "\x1b" not in shown


def test_rejects_of_an_unknown_window_are_refused(command: Command, done: ConfiguredTable, home: Path) -> None:
    """A window or delivery without rejects has none to show; one that was never there is a mistake."""
    (home / "inbox/feb.csv").write_text("id,day\n4,2024-02-01\n")
    collect_windows(done, find_windows(done))
    assert command("pipeline", "rejects", "shop.orders", "--window", "feb.csv") == (0, "", "")
    result = command("pipeline", "rejects", "shop", "--window", "2023-01-01")
    assert (result.code, result.out) == (2, "")
    assert "window: '2023-01-01' is in none of these tables: `executor-adapter pipeline windows`" in result.err


def test_rejects_beyond_the_limit_are_counted(
    command: Command, done: ConfiguredTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said how many rejects are not shown, and how to see them; a program is given all."""
    monkeypatch.setattr(pipeline, "MAX_ROWS", 1)
    shown = command("pipeline", "rejects", "shop.orders", "--window", "jan.csv").out
    assert shown.splitlines()[-1] == "and 1 more: --json shows all"
    assert len(command("pipeline", "rejects", "shop.orders", "--window", "jan.csv", "--json").json) == 2


@pytest.mark.parametrize("file", ["orders-*.csv", "orders-2026-01-05.csv"])
def test_a_range_of_days_that_no_window_is_in_is_refused(command: Command, home: Path, file: str) -> None:
    """Exit code 2, before anything starts: a file is not collected again for the days that its name has."""
    tool = {"source": "files", "directory": "inbox", "tables": {"orders": {"file": file}}}
    (home / "config.yaml").write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": tool}}))
    result = command("pipeline", "backfill", "shop.orders", "--since", "2026-02-01")
    assert (result.code, result.out) == (2, "")
    assert "since: no window of shop.orders is named by a day" in result.err
    assert not (home / "lake").exists()


@pytest.mark.parametrize(
    ("table", "takes"),
    [
        ({"file": "*.csv"}, False),
        ({"file": "2026-*/all"}, True),
        ({"file": "all"}, False),
        ({"file": "all.csv", "partition": ["day"]}, True),
    ],
)
def test_files_take_a_range_where_their_windows_may_be_days(home: Path, table: dict[str, Any], takes: bool) -> None:
    """By a column, or by names without a suffix; one such table of several is enough."""
    whole = {"file": "whole.csv"}
    tool = {"source": "files", "directory": "inbox", "tables": {"orders": table, "whole": whole}}
    (home / "config.yaml").write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": tool}}))
    tables = select_tables(load_config())
    refused = pytest.raises(ConfigurationError, match=r"no window of shop\.orders, shop\.whole is named by a day")
    with nullcontext() if takes else refused:
        check_range(tables, date(2026, 1, 1), None)
    check_range(tables, None, None)


def test_a_table_that_is_asked_for_whole_takes_no_range(home: Path) -> None:
    """Nothing in the request would say which days: all rows came, and nothing said so."""
    resource = {"path": "/orders", "key": "id"}
    tool = {"source": "rest", "url": "https://example.org", "resources": {"orders": resource}}
    (home / "config.yaml").write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": tool}}))
    with pytest.raises(ConfigurationError, match="a run collects all of them: leave out the range"):
        check_range(select_tables(load_config()), date(2026, 1, 1), None)
    resource["path"] = "/orders?since={since}"
    (home / "config.yaml").write_text(yaml.safe_dump({"lake": "lake", "tools": {"shop": tool}}))
    check_range(select_tables(load_config()), date(2026, 1, 1), None)


@pytest.mark.parametrize("words", ["windows", "rejects", "backfill --since 2024-01-01", "reprocess", "rebuild"])
def test_a_wrong_name_is_answered_with_the_nearest(command: Command, orders: ConfiguredTable, words: str) -> None:
    """Exit code 2, before anything starts."""
    result = command("pipeline", *words.split(), "shop/order")
    assert result.code == 2
    assert result.err.endswith(
        "'shop/order' is not a table, as tool.table, and not a tool: did you mean shop.orders?\n"
    )
