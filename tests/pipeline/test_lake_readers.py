"""Every reader of Parquet reads the folder of a table as it stands: all rows, with the same values."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from executor_adapter.config import FilesTool
from executor_adapter.pipeline import ConfiguredTable, expire_windows, remove_windows, settle_windows
from executor_adapter.pipeline.lake.table import LakeTable
from tests.pipeline.lakes import at, lake_table, write
from tests.waiting import PATIENCE

Rows = list[dict[str, Any]]


def with_pyarrow(folder: Path) -> Rows:
    return ds.dataset(folder, partitioning="hive").to_table().to_pylist()


def with_pandas(folder: Path) -> Rows:
    rows = pd.read_parquet(folder, dtype_backend="pyarrow")
    return pa.Table.from_pandas(rows, preserve_index=False).to_pylist()


def with_polars(folder: Path) -> Rows:
    return pl.scan_parquet(folder).collect().to_dicts()


def with_duckdb(folder: Path, options: str = "") -> Rows:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        query = f"select * from read_parquet(?{options})"
        return connection.sql(query, params=[str(folder)]).to_arrow_table().to_pylist()


READERS = (with_pyarrow, with_pandas, with_polars, with_duckdb)
NOON = datetime(2013, 1, 1, 12, tzinfo=UTC)


def drifted(root: Path) -> LakeTable:
    """A table in a path with spaces, whose windows came with different columns and types."""
    table = lake_table(root / "my lake")
    write(table, "2013-01", pa.table({"id": ["00501"], "n": [1]}))
    money = pa.table({"id": ["NA"], "n": [2.5], "price": pa.array([Decimal("9.90")], pa.decimal128(10, 2))})
    write(table, "2013-02", money)
    when = pa.table({"id": ["3"], "day": [date(2013, 1, 1)], "at": pa.array([NOON], pa.timestamp("us", "UTC"))})
    write(table, "New York / 3", when)
    write(table, "empty", when.slice(0, 0))
    return table


@pytest.mark.parametrize("read", READERS)
def test_a_drifted_table_is_read_as_it_stands(tmp_path: Path, read: Callable[[Path], Rows]) -> None:
    """Windows with other columns and types than the first, spaces in paths, a window without rows."""
    rows = sorted(read(drifted(tmp_path).folder), key=lambda row: str(row["id"]))
    nothing = {"price": None, "day": None, "at": None}
    assert rows == [
        {"id": "00501", "n": 1.0, "window": "2013-01"} | nothing,
        {"id": "3", "n": None, "price": None, "day": date(2013, 1, 1), "at": NOON, "window": "New York / 3"},
        {"id": "NA", "n": 2.5, "window": "2013-02"} | nothing | {"price": Decimal("9.90")},
    ]


DAYS = ("2013-01-01", "2013-01-02", "2013-01-03", "2013-02-01")


def with_polars_through_pyarrow(folder: Path) -> Rows:
    rows = pl.from_arrow(ds.dataset(folder, partitioning="hive").to_table())
    assert isinstance(rows, pl.DataFrame)
    return rows.to_dicts()


def with_duckdb_by_name(folder: Path) -> Rows:
    return with_duckdb(folder, ", union_by_name = true")


def test_readers_see_whole_windows_while_they_are_replaced(tmp_path: Path) -> None:
    """Who reads while windows are replaced, and get a column, sees all rows of one version of each."""
    table, rows, has_begun, is_over = (
        lake_table(tmp_path),
        100,
        threading.Barrier(5, timeout=PATIENCE),
        threading.Event(),
    )
    names = [f"2013-{month:02d}" for month in range(1, 7)]

    def replace(version: int) -> None:
        for name in names:
            columns = {"id": list(range(rows)), "version": [version] * rows}
            new = {f"new {version}": ["x"] * rows} if version % 6 == 5 else {}
            write(table, name, pa.table(columns | new), fingerprint=str(version))

    def read_on(read: Callable[[Path], Rows]) -> int:
        has_begun.wait()
        times = 0
        while not is_over.is_set() or not times:
            found = Counter((row["window"], row["version"]) for row in read(table.folder))
            assert set(found.values()) == {rows}
            assert sorted(window for window, _ in found) == names
            times += 1
        return times

    replace(0)
    readers = (with_pyarrow, with_pandas, with_duckdb_by_name, with_polars_through_pyarrow)
    with ThreadPoolExecutor(len(readers)) as threads:
        reading = [threads.submit(read_on, read) for read in readers]
        has_begun.wait()
        try:
            for version in range(1, 13):
                replace(version)
        finally:
            is_over.set()
        assert all(each.result() for each in reading)


def days(root: Path, **settings: Any) -> ConfiguredTable:
    described = {"source": "files", "directory": root, "tables": {"days": {"file": "*.csv", **settings}}}
    tool = FilesTool.model_validate(described)
    table = ConfiguredTable(lake=root, tool_name="shop", tool=tool, name="days")
    for number, window in enumerate((*DAYS, "other"), 1):
        write(table.raw, window, pa.table({"n": [number]}))
    return table


def test_old_windows_expire(tmp_path: Path) -> None:
    """Windows that were over before a day are removed; others stay."""
    old = days(tmp_path, keep_days=5)
    assert expire_windows(old, datetime(2013, 1, 8, tzinfo=UTC)) == 2
    table = old.raw
    assert list(table.windows()) == ["2013-01-03", "2013-02-01", "other"]
    assert [row["n"] for row in with_polars(table.folder)] == [3, 4, 5]
    remove_windows(table, list(table.windows()))
    assert table.windows() == {}
    write(table, "2013-05", pa.table({"n": [7]}))
    assert [row["n"] for row in with_polars(table.folder)] == [7]


@pytest.mark.parametrize(("policy", "rows"), [("keep", 5), ("delete", 4)])
def test_windows_that_vanished_are_settled(tmp_path: Path, policy: Any, rows: int) -> None:
    """They are kept or deleted; a window that was not selected is left alone."""
    selected = days(tmp_path, vanished_windows=policy, windows=DAYS)
    assert settle_windows(selected, ["2013-01-01", "2013-01-03", "2013-02-01"], at(1)) == ["2013-01-02"]
    table = selected.raw
    assert len(with_pyarrow(table.folder)) == rows
    assert (table.find("2013-01-02") is not None) == (policy == "keep")


def test_a_source_without_any_window_is_not_believed(tmp_path: Path) -> None:
    """An empty list does not delete a table."""
    table = days(tmp_path, vanished_windows="delete")
    with pytest.raises(Exception, match="lists no window, so 5 would be gone"):
        settle_windows(table, [])
    assert len(table.raw.windows()) == 5
