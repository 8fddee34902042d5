"""What an operator asks of tables and does to them: without a server, on the files of the lake."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline import ConfiguredTable, collect_window, configured_tables, find_windows, process_table
from executor_adapter.pipeline.commands import backfill, lateness, rebuild, rejects, reprocess, status, windows


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Orders of two months, of which one has a wrong price and one has none."""
    lines = ("id,day,price", "1,2024-01-30,1", "2,2024-02-01,x", "3,2024-02-02,", "4,2024-02-03,4", "")
    (tmp_path / "orders.csv").write_text("\n".join(lines))
    return configured(tmp_path)


def configured(folder: Path, **table: Any) -> Path:
    described = {
        "file": "orders.csv",
        "partition": "day",
        "period": "month",
        "expect": "daily",
        "schema": {"columns": {"id": "text", "day": "date", "price": "integer"}},
        "steps": [{"sql": "select *, case when price is null then 'is free' end as _reason from {rows}"}],
    }
    tools = {"shop": {"source": "files", "directory": str(folder), "tables": {"orders": described | table}}}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"lake": "lake", "tools": tools}))
    return file


def table_of(config: Path) -> ConfiguredTable:
    (table,) = configured_tables(load_config(config), "shop")
    return table


def run(config: Path) -> None:
    table = table_of(config)
    for window in find_windows(table):
        collect_window(table, window)
    for name in table.raw.windows():
        process_table(table, name)


def test_an_operator_sees_tables_windows_and_rejects(config: Path) -> None:
    """How many rows each table and window has, when they came, and what is wrong with those that were rejected."""
    assert status(config).rows == [("shop.orders", "never", "", 0, 0, 0)]
    run(config)
    ((name, last, late, *numbers),) = status(config).rows
    assert (name, late, numbers) == ("shop.orders", "", [2, 3, 2])
    assert last.startswith(f"{datetime.now(UTC):%Y-}")
    found = windows("shop.orders", config).rows
    assert [(row[0], row[1], *row[3:]) for row in found] == [("2024-01", 1, 1, 0, 0), ("2024-02", 2, 1, 1, 0)]
    shown = [
        (window, step, line, reason) for window, step, line, reason, _ in rejects("shop.orders", None, config).rows
    ]
    assert shown == [
        ("orders.csv", "type", 2, "price: 'x' is not an integer of 64 bits"),
        ("2024-02", "sql", 1, "is free"),
    ]
    assert len(rejects("shop.orders", "2024-02", config).rows) == 1
    with pytest.raises(ConfigurationError, match=r"'orders' is not a table: must be one of shop\.orders"):
        windows("orders", config)


def test_a_table_is_late_when_a_delivery_is_expected(config: Path) -> None:
    """As its `expect` says: after a day for daily rows."""
    run(config)
    table, now = table_of(config), datetime.now(UTC)
    assert lateness(table, now) is None
    late = lateness(table, now + timedelta(days=2))
    assert late is not None
    assert 86_300 < late < 86_500


def test_an_operator_makes_rows_anew(config: Path) -> None:
    """Windows are processed again, files collected again, and a table made anew from what was landed."""
    run(config)
    assert reprocess("shop.orders", "2024-01", config).rows == [("2024-01", "processed", 1, 0)]
    assert [row[1] for row in reprocess("shop.orders", None, config).rows] == ["processed", "processed"]
    done = backfill("shop.orders", date(2024, 1, 1), date(2024, 2, 1), config).rows
    assert [row[:2] for row in done] == [("2024-01", "already_processed"), ("2024-02", "already_processed")]
    (config.parent / "orders.csv").unlink()
    by_year = configured(config.parent, period="year")
    assert rebuild("shop.orders", by_year).rows == [("2024", "processed", 2, 1)]
