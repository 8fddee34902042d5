"""Tables of the configuration: each window is collected once, processed once, and no row is lost."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest
import sqlalchemy as sa
import yaml
from pytest_mock import MockerFixture

from executor_adapter.config import RestTool, Settings, load_config
from executor_adapter.exceptions import (
    ConfigurationError,
    DataCollectionException,
    DataProcessingException,
    SoftTimeoutError,
)
from executor_adapter.pipeline import (
    ConfiguredTable,
    Window,
    balance,
    collect_window,
    collect_windows,
    configured_tables,
    find_windows,
    land,
    process_window,
    rebuild_table,
    reject_reasons,
    select_tables,
    store_landing,
)
from executor_adapter.pipeline.job_log import do_each
from executor_adapter.pipeline.lake.stored import FileWriter, read_entry
from executor_adapter.pipeline.lake.table import LakeTable, remove_windows
from executor_adapter.pipeline.processing import process_windows, windows_to_process
from executor_adapter.pipeline.sources import files
from executor_adapter.pipeline.sources.landing import landings_of, unneeded
from executor_adapter.pipeline.upkeep import (
    expect_rows,
    expire_windows,
    lateness,
    remove_leftovers,
    settle_windows,
    status_of,
)
from tests.api_server import Answer, as_json, serving
from tests.servers import ROOT
from tests.waiting import PATIENCE

FACTOR = 1
ASIA = f"{__name__}:reject_asia"
AIRPORTS = "faa,lon,tz\n" + "".join(f"A{number:02},{lon},-5\n" for number, lon in enumerate([-75, 75, -80, -90]))


def today() -> date:
    """Return the day by UTC. The tests may go on past midnight, so none keeps it for the others."""
    return datetime.now(UTC).date()


def tables(lake: Path, **tool: Any) -> list[ConfiguredTable]:
    return configured_tables(Settings(lake=lake, tools={"map": tool}), "map")


@pytest.fixture
def airports(tmp_path: Path) -> ConfiguredTable:
    """A table of four airports, one of them in Asia."""
    (tmp_path / "airports.csv").write_text(AIRPORTS)
    return of_file(tmp_path)


def of_file(folder: Path, **settings: Any) -> ConfiguredTable:
    described = {
        "file": "airports.csv",
        "schema": {"columns": {"faa": "text", "lon": "float", "tz": "integer"}},
        "steps": [ASIA],
    }
    (table,) = tables(folder / "lake", source="files", directory=folder, tables={"airports": described | settings})
    return table


def reject_asia(rows: Any) -> Any:
    return rows.assign(_reason=(rows["lon"] > 0).map({True: "is in Asia", False: None}))


def test_a_reject_of_a_step_names_the_delivery_of_its_row(tmp_path: Path) -> None:
    """A window has rows of several files; after a step that made other rows of them, nothing tells."""
    for name, lines in {"a": "A0,-1,1\nA1,1,1\n", "b": "B0,1,1\n", "c": "C0,2,1\nA1,3,1\n"}.items():
        (tmp_path / f"{name}.csv").write_text(f"faa,lon,tz\n{lines}")
    of_files = {"file": "*.csv", "partition": "tz", "key": "faa"}
    table = of_file(tmp_path, **of_files)
    collect(table)
    process_window(table, "01")
    found = {json.loads(row["text"])["faa"]: row["delivery"] for row in table.rejects.read("01").to_pylist()}
    assert found == {"A1": "c.csv", "B0": "b.csv", "C0": "c.csv"}
    grouped = of_file(tmp_path, **of_files, steps=[{"sql": "SELECT faa, max(lon) AS lon FROM {rows} GROUP BY 1"}, ASIA])
    process_window(grouped, "01")
    assert {row["delivery"] for row in table.rejects.read("01").to_pylist()} == {None}


def lose_a_row(rows: Any) -> Any:
    return rows.iloc[1:]


def collect(table: ConfiguredTable, **options: Any) -> list[dict[str, Any]]:
    return [collect_window(table, window, **options) for window in find_windows(table)]


def process(table: ConfiguredTable) -> list[tuple[int, str, int]]:
    found = [process_window(table, window) for window in table.raw.windows()]
    return [(done.kept, done.status, done.rejected) for done in found]


def counts(found: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(each["records_collected"], each["status"]) for each in found]


# --- files ---


def test_a_file_is_collected_once(airports: ConfiguredTable) -> None:
    """A file that has not changed is not collected again; one that has is."""
    assert counts(collect(airports)) == [(4, "collected")]
    assert counts(collect(airports)) == [(0, "already_collected")]
    (airports.lake.parent / "airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    assert counts(collect(airports)) == [(3, "collected")]


def test_one_job_collects_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is broken stops none of the others, and what has not changed is not even read."""
    for name, text in {"a": "n\n1\n", "b": "n,n\n1,2\n", "c": "n\n2\nx\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    described = {"file": "*.csv", "schema": {"columns": {"n": "integer"}}}
    (table,) = tables(tmp_path / "lake", source="files", directory=tmp_path, tables={"t": described})
    # What was written a moment ago is read to be sure.
    monkeypatch.setattr(files, "time", SimpleNamespace(time=lambda: time.time() + 10))
    done = collect_windows(table, find_windows(table))
    assert (done["records_collected"], done["windows"]) == (3, ["a.csv", "c.csv"])
    assert [window.name for window in done["failed"]] == ["b.csv"]
    assert collect_windows(table, done["failed"] * 2)["status"] == "collected"
    with pytest.raises(DataCollectionException, match="the column 'n' is there twice") as caught:
        collect_windows(table, done["failed"])
    assert caught.value.error_code == "DATA_ERROR"
    assert set(table.raw.windows()) == {"a.csv", "c.csv"}
    assert list(table.rejects.windows()) == ["read c.csv"]
    (tmp_path / "b.csv").write_text("n\n3\n")
    done = collect_windows(table, find_windows(table))
    assert (done["records_collected"], done["windows"]) == (1, ["a.csv", "b.csv", "c.csv"])
    os.utime(tmp_path / "b.csv", (1, 1))
    collect_windows(table, find_windows(table))
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", pytest.fail)
        windows = find_windows(table)
        assert [window.size for window in windows] == [4, 4, 6]
        assert collect_windows(table, windows[:1] + windows[2:])["status"] == "already_collected"


def test_one_job_opens_one_database_for_several_files(tmp_path: Path, mocker: MockerFixture) -> None:
    """It costs more than the rows of a small file; what is wrong with one file is of that file alone."""
    for name, text in {"a": "j\n[1]\nNaN\n1,2\n", "b": "j\n{}\n", "c": "j\n[\n[3]\n2,3\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    described = {"file": "*.csv", "schema": {"columns": {"j": "json"}}}
    (table,) = tables(tmp_path / "lake", source="files", directory=tmp_path, tables={"t": described})
    connect = mocker.spy(duckdb, "connect")
    done = collect_windows(table, find_windows(table))
    assert (done["rows"], done["records_collected"], connect.call_count) == (3, 7, 1)
    found = {name: table.rejects.read(name)["line"].to_pylist() for name in table.rejects.windows()}
    assert found == {"read a.csv": [4, 3], "read c.csv": [4, 2]}


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """`max_bytes` of the tool holds for what an archive unpacks to, too; raising it is enough to go on."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"n\n" + b"1\n" * 5000))
    described = {"source": "files", "directory": tmp_path, "tables": {"t": {"file": "a.csv.gz"}}}
    (table,) = tables(tmp_path / "lake", **described, max_bytes=1000)
    with pytest.raises(DataCollectionException, match="unpacks to more than 1,000 bytes") as caught:
        collect(table)
    assert caught.value.error_code == "DATA_ERROR"
    (table,) = tables(tmp_path / "lake", **described, max_bytes=20_000)
    assert counts(collect(table)) == [(5000, "collected")]


def test_other_settings_read_a_landing_again(airports: ConfiguredTable) -> None:
    """What was landed is stored again where the settings by which it is read have changed."""
    collect(airports)
    assert counts(collect(of_file(airports.lake.parent, nulls=["A00"]))) == [(4, "collected")]


@pytest.mark.parametrize("change", [{"partition": "tz"}, {"file": "air*.csv"}])
def test_rows_are_not_divided_anew_beside_the_old_ones(airports: ConfiguredTable, change: dict[str, Any]) -> None:
    """Windows of another kind are refused while rows of the old kind are there, with the command that makes them."""
    collect(airports)
    process(airports)
    other = of_file(airports.lake.parent, **change)
    with pytest.raises(DataCollectionException, match="are divided into other windows") as failed:
        collect(other)
    assert failed.value.error_code == "CONFIGURATION_ERROR"
    assert list(airports.raw.windows()) == ["all"]
    assert str(failed.value).endswith("make the table anew: executor-adapter pipeline rebuild map.airports")
    assert rebuild_table(other)["rows"] == 4
    assert counts(collect(other)) == [(0, "already_collected")]
    process(other)
    assert str(balance("map", [other])) == "map: 4 collected = 3 processed + 1 rejected"


def test_a_file_may_get_another_name(airports: ConfiguredTable) -> None:
    """Its rows replace those that were collected under its old name, also where the table is made anew."""
    collect(airports)
    (airports.lake.parent / "b.csv").write_text(AIRPORTS.rsplit("A03")[0])
    renamed = of_file(airports.lake.parent, file="b.csv")
    assert counts(collect(renamed)) == [(3, "collected")]
    assert rebuild_table(renamed) == {"landings": 1, "rows": 3, "rejected": 0}


def test_windows_can_be_selected(airports: ConfiguredTable) -> None:
    """Only the selected windows are stored; one that is not there is an error that lists those that are."""
    (airports.lake.parent / "airports.csv").write_text("faa,lon,tz\nA,-75,-5\nB,-80,-6\n")
    table = of_file(airports.lake.parent, partition="tz", windows=["-5"])
    assert counts(collect(table)) == [(1, "collected")]
    assert list(table.raw.windows()) == ["-5"]
    with pytest.raises(DataCollectionException, match=r"window '-7' is not in .*: the windows are -5, -6") as failed:
        collect(of_file(airports.lake.parent, partition="tz", windows=["-7"]))
    assert failed.value.error_code == "CONFIGURATION_ERROR"


def test_a_range_may_leave_out_a_selected_window(airports: ConfiguredTable) -> None:
    """The file has it all the same."""
    (airports.lake.parent / "airports.csv").write_text("faa,lon,tz,day\nA,-75,-5,2013-01-01\nB,-80,-6,2013-02-01\n")
    table = of_file(airports.lake.parent, partition="day", period="month", windows=["2013-01", "2013-02"])
    (window,) = find_windows(table, since=date(2013, 1, 1), until=date(2013, 2, 1))
    assert counts([collect_window(table, window)]) == [(1, "collected")]


def test_windows_that_are_selected_later_are_added(airports: ConfiguredTable) -> None:
    """A window that is selected later is stored from the landing; those that are there stay as they are."""
    folder = airports.lake.parent
    (folder / "airports.csv").write_text("faa,lon,tz\nA,-75,-5\nB,-80,-6\n")
    collect(of_file(folder, partition="tz", windows=["-5"]))
    file = airports.raw.file_of("-5").stat().st_ino
    both = of_file(folder, partition="tz")
    assert counts(collect(both)) == [(1, "collected")]
    assert sorted(both.raw.windows()) == ["-5", "-6"]
    assert both.raw.file_of("-5").stat().st_ino == file


def test_windows_beside_a_range_are_still_to_be_stored(tmp_path: Path) -> None:
    """A range of days of a new file, stored by itself, hides none of its other rows in the windows of other files."""
    described = {"file": "*.csv", "partition": "day", "period": "month", "key": "id"}
    described["schema"] = {"columns": {"id": "text", "day": "date"}}
    (table,) = tables(tmp_path / "lake", source="files", directory=tmp_path, tables={"t": described})
    (tmp_path / "a.csv").write_text("id,day\n1,2024-01-05\n2,2024-02-05\n")
    collect(table)
    (tmp_path / "b.csv").write_text("id,day\n3,2024-01-09\n4,2024-02-09\n")
    for window in find_windows(table, since=date(2024, 1, 1), until=date(2024, 2, 1)):
        collect_window(table, window, again=True)
    assert table.raw.read("2024-02")["id"].to_pylist() == ["2"]
    assert counts(collect(table)) == [(0, "already_collected"), (1, "collected")]
    assert sorted(table.raw.read("2024-02")["id"].to_pylist()) == ["2", "4"]
    assert counts(collect(table)) == [(0, "already_collected")] * 2


def test_files_of_a_pattern_are_windows_of_their_own(tmp_path: Path) -> None:
    """Without a partition, each file that a pattern means is a window; a single file is the window `all`."""
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(AIRPORTS)
    table = of_file(tmp_path, file="*.csv")
    collect(table)
    assert list(table.raw.windows()) == ["a.csv", "b.csv"]


def test_what_is_processed_needs_no_job(airports: ConfiguredTable) -> None:
    """A window is to be processed until its rows, as they are, went through the steps, as they are."""
    collect(airports)
    assert list(windows_to_process(airports)) == ["all"]
    process(airports)
    assert windows_to_process(airports) == {}
    assert list(windows_to_process(of_file(airports.lake.parent, steps=[{"sql": "FROM {rows}"}]))) == ["all"]


def test_what_was_made_of_a_window_that_is_empty_now_goes(airports: ConfiguredTable) -> None:
    """A source that has no row any more has none in the processed rows and the rejects either."""
    collect(airports)
    process(airports)
    (airports.lake.parent / "airports.csv").write_text("faa,lon,tz\n")
    collect(airports)
    assert windows_to_process(airports) == {"all": 0}
    process(airports)
    assert [layer.read("all").num_rows for layer in (airports.raw, airports.processed)] == [0] * 2
    assert airports.rejects.windows() == windows_to_process(airports) == {}


def test_rows_of_a_source_that_is_empty_now_are_marked(airports: ConfiguredTable) -> None:
    """An answer without a row says that all of them are gone."""
    table = of_file(airports.lake.parent, key="faa", vanished_rows="mark")
    collect(table)
    (airports.lake.parent / "airports.csv").write_text("faa,lon,tz\n")
    collect(table)
    rows = table.raw.read("all")
    assert rows.num_rows > rows["vanished_at"].null_count == 0


def test_a_file_without_a_row_that_fits_is_read_once(airports: ConfiguredTable) -> None:
    """Its rejects are not collected again and again."""
    (airports.lake.parent / "airports.csv").write_text("faa,lon,tz\nA,far,-5\n")
    assert [each["records_collected"] for each in collect(airports) + collect(airports)] == [1, 0]


@pytest.mark.parametrize(("policy", "left"), [("keep", ["-5", "-6"]), ("delete", ["-5"])])
def test_windows_that_vanish_are_settled(airports: ConfiguredTable, policy: str, left: list[str]) -> None:
    """A window that the file has no longer is kept or deleted, in all layers."""
    file = airports.lake.parent / "airports.csv"
    table = of_file(file.parent, partition="tz", vanished_windows=policy)
    file.write_text("faa,lon,tz\nA,-75,-5\nB,-80,-6\n")
    collect(table)
    process(table)
    file.write_text("faa,lon,tz\nA,-75,-5\n")
    (done,) = collect(table)
    assert settle_windows(table, done["windows"]) == ["-6"]
    process(table)
    assert sorted(table.raw.windows()) == sorted(table.processed.windows()) == left
    assert balance("map", [table]).holds


def test_the_rejects_of_a_file_that_is_gone_go_too(tmp_path: Path) -> None:
    """They go with the file where windows are columns too, also where its windows stay, or it had none."""
    files = {"a.csv": "A,far,-5\nB,-75,-6\n", "b.csv": "C,far,-5\nD,-75,-5\n", "c.csv": "E,far,-5\n"}
    for name, rows in files.items():
        (tmp_path / name).write_text(f"faa,lon,tz\n{rows}")
    table = of_file(tmp_path, file="*.csv", partition="tz", key="faa", vanished_windows="delete")
    kept = of_file(tmp_path, file="*.csv", partition="tz", key="faa")

    def settle(settled: ConfiguredTable) -> list[str]:
        present = [name for done in collect(settled) for name in done["windows"]]
        return settle_windows(settled, present, files=[window.name for window in find_windows(settled)])

    assert settle(table) == []
    process(table)
    (tmp_path / "c.csv").unlink()
    assert settle(table) == []
    assert sorted(table.rejects.windows()) == ["read a.csv", "read b.csv"]
    (tmp_path / "a.csv").unlink()
    assert settle(kept) == ["-6"]
    assert sorted(table.rejects.windows()) == ["read a.csv", "read b.csv"]
    assert settle(table) == ["-6"]
    assert sorted(table.rejects.windows()) == ["read b.csv"]
    assert str(balance("map", [table])) == "map: 2 collected = 1 processed + 1 rejected"


def test_a_file_that_is_called_like_rejects_is_not_taken_for_them(tmp_path: Path) -> None:
    """What its steps reject, and its rows, stay where the file whose rejects are called so is gone."""
    (tmp_path / "a.csv").write_text("faa,lon,tz\nA,-75,-5\n")
    (tmp_path / "read a.csv").write_text(AIRPORTS)
    table = of_file(tmp_path, file="*.csv", vanished_windows="delete")
    collect(table)
    process(table)
    (tmp_path / "a.csv").unlink()
    assert settle_windows(table, collect(table)[0]["windows"], files=["read a.csv"]) == ["a.csv"]
    assert str(balance("map", [table])) == "map: 4 collected = 3 processed + 1 rejected"


def test_a_settle_that_was_cut_short_is_made_up_for(airports: ConfiguredTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has removed a window from one layer, the next run removes it from the others."""
    table = of_file(airports.lake.parent, partition="tz", vanished_windows="delete")
    collect(table)
    process(table)

    def remove(layer: LakeTable, windows: Any) -> None:
        if layer.layer == "processed":
            raise ConnectionError("cut")
        remove_windows(layer, windows)

    monkeypatch.setattr("executor_adapter.pipeline.upkeep.remove_windows", remove)
    with pytest.raises(ConnectionError):
        settle_windows(table, ["-6"])
    monkeypatch.undo()
    assert settle_windows(table, ["-6"]) == ["-5"]
    assert not any("-5" in layer.windows() for layer in table.layers)


def test_a_file_without_a_row_has_not_vanished(tmp_path: Path) -> None:
    """Rows that stay by a key, when the source has them no longer, stay also where it has none, in each run."""
    described = {"file": "*.csv", "key": "id", "vanished_windows": "delete"}
    (table,) = tables(tmp_path / "lake", source="files", directory=tmp_path, tables={"t": described})
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"id\n{name}\n")
    collect(table)
    (tmp_path / "a.csv").write_text("id\n")
    for _ in range(2):
        assert settle_windows(table, [name for done in collect(table) for name in done["windows"]]) == []
    assert table.raw.read("a.csv")["id"].to_pylist() == ["a"]


def test_a_window_that_vanished_while_it_was_processed_is_settled(airports: ConfiguredTable) -> None:
    """Its job published the rows after the source had lost them; the next run removes them."""
    table = of_file(airports.lake.parent, partition="tz", vanished_windows="delete")
    collect(table)
    process(table)
    remove_windows(table.raw, ["-5"])
    assert settle_windows(table, ["-6"]) == ["-5"]
    assert table.processed.windows() == {}
    assert settle_windows(table, ["-6"]) == []


# --- APIs ---


class FakeApi:
    """A server of finished runs with two states each."""

    def __init__(self) -> None:
        self.runs: dict[date, list[dict[str, Any]]] = {}

    def __call__(self, path: str, body: Any) -> Answer:
        if path.startswith("/states"):
            run = path.rpartition("=")[2]
            return as_json([{"id": f"{run} {name}", "type": name} for name in ("RUNNING", "COMPLETED")])
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        rows, offset = self.runs.get(date.fromisoformat(query["day"][:10]), []), int(query["offset"])
        return as_json(rows[offset : offset + int(query["limit"])])


def history(url: str, lake: Path, name: str = "runs", **settings: Any) -> ConfiguredTable:
    runs = {"path": "/runs", "params": {"day": "{since}"}, "paging": {"by": "offset"}} | settings
    states = {"path": "/states", "params": {"run": "{id}"}, "for_each": "runs"}
    found = tables(lake, source="rest", url=url, days=1, resources={"states": states, "runs": runs})
    assert [table.name for table in found] == ["runs", "states"]
    return next(table for table in found if table.name == name)


def test_new_objects_are_added_to_today(tmp_path: Path) -> None:
    """A day that is not over gets its new objects, keeps the old ones, and has the newest version of each."""
    api = FakeApi()
    with serving(api) as (url, _):
        runs = history(url, tmp_path)
        assert counts(collect(runs)) == [(0, "collected"), (0, "collected")]
        api.runs[today()] = [{"id": "a", "state": "FAILED"}]
        assert counts(collect(runs))[1] == (1, "collected")
        api.runs[today()] = [{"id": "a", "state": "COMPLETED"}, {"id": "b", "note": "a new field"}]
        assert counts(collect(runs))[1] == (1, "collected")
        assert counts(collect(runs))[1] == (0, "already_collected")
    rows = {row["id"]: row for row in runs.raw.read(today().isoformat()).to_pylist()}
    assert rows == {
        "a": {"id": "a", "state": "COMPLETED", "note": None},
        "b": {"id": "b", "state": None, "note": "a new field"},
    }


def test_a_day_that_is_over_is_requested_once(tmp_path: Path) -> None:
    """A day that was over when it was collected is not requested again, except by a backfill."""
    api = FakeApi()
    past = today() - timedelta(days=9)
    api.runs[past] = [{"id": "a"}]
    with serving(api) as (url, requests):
        runs = history(url, tmp_path)
        windows = find_windows(runs, since=past, until=past + timedelta(days=1))
        assert [window.name for window in windows] == [past.isoformat()]
        assert counts([collect_window(runs, windows[0])]) == [(1, "collected")]
        requests.clear()
        assert counts([collect_window(runs, windows[0])]) == [(0, "already_collected")]
        assert requests == []
        api.runs[past] += [{"id": "b"}]
        assert counts([collect_window(runs, windows[0], again=True)]) == [(1, "collected")]
        # A window without an object, and one that is not over.
        assert [len(find_windows(runs)), len(find_windows(runs, since=past))] == [2, 10]


def moment(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


def names(windows: list[Any]) -> list[str]:
    return [window.name[-2:] for window in windows]


def test_days_without_a_run_are_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on after the last day that was collected after its end; a day that failed is asked for until it is."""
    api = FakeApi()
    api.runs = {date(2026, 3, day): [{"id": str(day)}] for day in range(1, 31)}
    with serving(api) as (url, _):
        runs = history(url, tmp_path)

        def run(now: datetime, fails: str = "") -> list[str]:
            monkeypatch.setattr("executor_adapter.pipeline.sources.landing._now", now.isoformat)
            windows = find_windows(runs, now=now)
            for window in windows:
                if window.name[-2:] != fails:
                    collect_window(runs, window)
            return names(windows)

        assert run(moment(2)) == ["01", "02"]
        assert run(moment(5), fails="03") == ["02", "03", "04", "05"]
        assert run(moment(6)) == ["03", "05", "06"]
        # A backfill of older days leaves it as it is.
        for window in find_windows(runs, since=date(2026, 2, 1), until=date(2026, 2, 3), now=moment(6)):
            collect_window(runs, window)
        assert run(moment(9)) == ["06", "07", "08", "09"]
        assert run(moment(9, 13)) == ["08", "09"]
    assert sorted(int(row["id"]) for window in runs.raw.windows() for row in runs.raw.read(window).to_pylist()) == [
        *range(1, 10)
    ]


def test_states_of_runs_that_are_found_late_are_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day whose runs could not be asked for after its end is not over for what is asked for by them."""
    api = FakeApi()
    api.runs = {date(2026, 3, 1): [{"id": "a"}]}
    with serving(api) as (url, _):
        runs, states = history(url, tmp_path), history(url, tmp_path, "states")

        def run(now: datetime, *tables: ConfiguredTable) -> None:
            monkeypatch.setattr("executor_adapter.pipeline.sources.landing._now", now.isoformat)
            for table in tables:
                collect_windows(table, find_windows(table, now=now))

        run(moment(1), runs, states)
        api.runs[date(2026, 3, 1)] += [{"id": "b"}]
        run(moment(3), states)
        assert states.raw.windows()["2026-03-01"].rows == 2
        run(moment(4), runs, states)
        assert states.raw.windows()["2026-03-01"].rows == 4
        run(moment(5), runs, states)
        assert names(find_windows(states, now=moment(6))) == ["05", "06"]


def test_what_was_asked_by_day_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The days without a run are still to be asked for."""
    api = FakeApi()
    api.runs = {date(2026, 3, day): [{"id": str(day)}] for day in range(1, 10)}
    with serving(api) as (url, _):
        for name in ("runs", "states"):
            for now in (moment(2), moment(4)):
                monkeypatch.setattr("executor_adapter.pipeline.sources.landing._now", now.isoformat)
                for each in ("runs", "states"):
                    table = history(url, tmp_path, each)
                    collect_windows(table, find_windows(table, now=now))
            table = history(url, tmp_path, name)
            rows = table.raw.windows().keys()
            rebuild_table(table)
            assert names(find_windows(table, now=moment(9)))[:6] == ["04", "05", "06", "07", "08", "09"]
            assert set(table.raw.windows()) == rows


def test_a_landing_that_does_not_fit_keeps_no_other_day_away(tmp_path: Path) -> None:
    """A table is made anew from all of its landings that can be stored; then the error of the others is raised."""
    api, days = FakeApi(), [today() - timedelta(days=ago) for ago in (2, 1, 0)]
    api.runs = {day: [{"id": "a", "n": "1"}] for day in days} | {days[1]: [{"id": "a"}]}
    with serving(api) as (url, _):
        collect(history(url, tmp_path))
        collect_window(runs := history(url, tmp_path), find_windows(runs, since=days[0], until=days[1])[0])
    typed = history(url, tmp_path, schema={"columns": {"n": "integer"}})
    with pytest.raises(DataProcessingException, match="missing columns: n"):
        rebuild_table(typed)
    assert list(typed.raw.windows()) == [days[0].isoformat(), days[2].isoformat()]


def test_a_resource_without_bounds_is_one_window(tmp_path: Path) -> None:
    """What is not asked for by day is received whole each time, and so are its children: nothing is multiplied."""
    objects = [{"id": "a"}, {"id": "b"}]

    def respond(path: str, body: Any) -> Answer:
        return as_json([{"id": f"{path} 1"}] if path.startswith("/states") else objects)

    def of(name: str) -> ConfiguredTable:
        resources = {
            "countries": {"path": "/countries", "paging": {"by": "none"}},
            "states": {"path": "/states/{id}", "for_each": "countries", "paging": {"by": "none"}},
        }
        found = tables(tmp_path, source="rest", url=url, days=3, resources=resources)
        return next(table for table in found if table.name == name)

    with serving(respond) as (url, _):
        for expected in (2, 2, 1, 0):
            del objects[expected:]
            for name in ("countries", "states"):
                collect(of(name))
                assert {each: entry.rows for each, entry in of(name).raw.windows().items()} == {"all": expected}


def test_objects_of_a_day_are_asked_for_by_all_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parents have no day: also by new ones, until they were asked for after the day's end."""
    shops = [{"id": "a"}]

    def respond(path: str, body: Any) -> Answer:
        return as_json(shops if path == "/shops" else [{"id": path}])

    described = {
        "shops": {"path": "/shops", "paging": {"by": "none"}},
        "orders": {"path": "/{id}", "params": {"since": "{since}"}, "paging": {"by": "none"}, "for_each": "shops"},
    }
    with serving(respond) as (url, _):
        found = tables(tmp_path, source="rest", url=url, days=1, resources=described)
        orders = found[1]

        def run(now: datetime, *tables: ConfiguredTable) -> list[str]:
            monkeypatch.setattr("executor_adapter.pipeline.sources.landing._now", now.isoformat)
            windows = [find_windows(table, now=now) for table in tables]
            for table, each in zip(tables, windows, strict=True):
                collect_windows(table, each)
            return names(windows[-1])

        assert run(moment(2), *found) == ["01", "02"]
        shops += [{"id": "b"}]
        assert run(moment(2, 13), *found) == ["01", "02"]
        assert {window: entry.rows for window, entry in orders.raw.windows().items()} == {
            "2026-03-01": 1,
            "2026-03-02": 2,
        }
        assert run(moment(4), *found) == ["02", "03", "04"]
        # A run without the parents asks by those that are known, and the days are not over by it.
        assert run(moment(6), orders) == ["04", "05", "06"]
        shops += [{"id": "c"}]
        assert run(moment(7), *found) == ["04", "05", "06", "07"]
        assert {entry.rows for window, entry in orders.raw.windows().items() if window > "2026-03-03"} == {3}
        assert run(moment(8), *found) == ["07", "08"]
    assert rebuild_table(found[0])["rows"] == 3
    assert list(found[0].raw.windows()) == ["all"]


def test_a_parent_with_a_cursor_is_refused(tmp_path: Path) -> None:
    """It is asked for what is new alone, so that no objects of older ones would be asked for."""
    items = {"path": "/items", "params": {"from": "{since}"}, "cursor": "n", "start": "0"}
    resources = {"items": items, "notes": {"path": "/{id}", "params": {"day": "{since}"}, "for_each": "items"}}
    found = tables(tmp_path, source="rest", url="http://127.0.0.1:1", resources=resources)
    found[0].check()
    with pytest.raises(ConfigurationError, match=r"resources\.notes: for_each cannot be items, which has a cursor"):
        found[1].check()


@pytest.mark.parametrize("parents", [{"a": "a"}, {"a": "b", "b": "c", "c": "a"}])
def test_resources_that_wait_for_each_other_are_refused(tmp_path: Path, parents: dict[str, str]) -> None:
    """None of them could be asked for first."""
    resources = {name: {"path": f"/{name}/{{id}}", "for_each": parent} for name, parent in parents.items()}
    with pytest.raises(ConfigurationError, match=r"resources\.a\.for_each leads back to a: leave one of them out"):
        tables(tmp_path, source="rest", url="http://127.0.0.1:1", resources=resources)


def test_a_resource_with_a_cursor_is_asked_for_what_is_new(tmp_path: Path) -> None:
    """`{since}` is the highest value that was collected, minus `look_back`, and `start` in the first run."""
    asked = []

    def respond(path: str, body: Any) -> Answer:
        asked.append(parse_qs(urlsplit(path).query)["from"][0])
        return as_json([{"id": f"{len(asked)}", "n": 10 * len(asked)}])

    with serving(respond) as (url, _):
        resource = {
            "path": "/items",
            "params": {"from": "{since}"},
            "paging": {"by": "none"},
            "cursor": "n",
            "start": "0",
            "look_back": 3,
            "schema": {"columns": {"id": "text", "n": "integer"}},
        }
        (items,) = tables(tmp_path, source="rest", url=url, resources={"items": resource})
        for _ in range(3):
            collect(items)
    assert asked == ["0", "7", "17"]
    assert items.raw.windows()["all"].rows == 3


def test_vanished_rows_beside_a_cursor_are_refused(tmp_path: Path) -> None:
    """An answer from a cursor on does not say which older rows are gone."""
    described = {"table": "orders", "cursor": "changed", "key": "id", "vanished_rows": "delete"}
    (orders,) = tables(tmp_path, source="sql", url="sqlite://", tables={"orders": described})
    with pytest.raises(ConfigurationError, match="does not say which older rows are gone"):
        orders.check()


@pytest.mark.parametrize("kind", [None, "text", "boolean", "json"])
def test_look_back_needs_a_type_that_it_is_taken_from(tmp_path: Path, kind: str | None) -> None:
    """Nothing can be subtracted from a text; without it, a text is a cursor, and so is a number or a date with it."""
    described: dict[str, Any] = {"table": "orders", "cursor": "changed", "key": "id"}

    def check(kind: str | None, look_back: float) -> None:
        schema = {} if kind is None else {"schema": {"columns": {"changed": kind}}}
        orders = described | schema | {"look_back": look_back}
        tables(tmp_path, source="sql", url="sqlite://", tables={"orders": orders})[0].check()

    for typed in ("integer", "decimal(9, 2)", "float", "date", "timestamp"):
        check(typed, 1)
    check(kind, 0)
    with pytest.raises(ConfigurationError, match=r"orders: look_back needs .*: declare the type of changed in schema"):
        check(kind, 3600)


def test_states_are_requested_for_each_run(tmp_path: Path) -> None:
    """A resource of `for_each` is asked for with each of its objects, and what is known already is not new."""
    api = FakeApi()
    with serving(api) as (url, requests):
        runs, states = history(url, tmp_path), history(url, tmp_path, "states")
        api.runs[today()] = [{"id": "a"}]
        collect(runs)
        assert counts(collect(states))[1] == (2, "collected")
        api.runs[today()] = [{"id": "a"}, {"id": "b"}]
        collect(runs)
        requests.clear()
        assert counts(collect(states))[1] == (2, "collected")
        assert [path for path, _ in requests if path.startswith("/states")] == ["/states?run=a", "/states?run=b"]
    assert states.raw.windows()[today().isoformat()].rows == 4


def test_objects_of_different_parents_are_different_rows(tmp_path: Path) -> None:
    """Many APIs number the objects of each parent from 1."""

    def respond(path: str, body: Any) -> Answer:
        return as_json([{"id": "1"}, {"id": "2"}])

    described = {
        "orders": {"path": "/orders", "paging": {"by": "none"}},
        "items": {"path": "/{id}/items", "paging": {"by": "none"}, "for_each": "orders"},
    }
    with serving(respond) as (url, _):
        items = tables(tmp_path, source="rest", url=url, resources=described)[1]
        assert counts(collect(items)) == [(4, "collected")]
    found = [(row["parent_id"], row["id"]) for row in items.raw.read("all").to_pylist()]
    assert sorted(found) == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]


def test_a_request_that_is_the_same_for_each_parent_is_refused(tmp_path: Path) -> None:
    """Without `{id}` each answer has the objects of all parents."""
    resources = {"orders": {"path": "/orders"}, "items": {"path": "/items", "for_each": "orders"}}
    _, items = tables(tmp_path, source="rest", url="http://127.0.0.1:1", resources=resources)
    with pytest.raises(ConfigurationError, match=r"resources\.items: for_each needs \{id\} in path or params"):
        items.check()


def test_an_object_without_its_key_is_rejected(tmp_path: Path) -> None:
    """Objects without an id could not be told apart, so they are rejects."""
    api = FakeApi()
    api.runs[today()] = [{"id": "a"}, {"id": None}, {"id": None}]
    with serving(api) as (url, _):
        runs = history(url, tmp_path)
        collect(runs)
    assert str(balance("map", [runs])) == "map: 3 collected = 0 processed + 2 rejected + 1 not processed"
    assert reject_reasons([runs]) == {("runs", "id: is empty"): 2}


def test_objects_of_two_pages_are_one_row(tmp_path: Path) -> None:
    """Pages overlap where objects are added while they are asked for; each object is a row once, and the later one."""
    pages = {0: [{"id": "a", "n": 1}, {"id": "b", "n": 1}], 2: [{"id": "b", "n": 2}, {"id": "c", "n": 2}], 4: []}

    def respond(path: str, body: Any) -> Answer:
        return as_json(pages[int(parse_qs(urlsplit(path).query)["offset"][0])])

    with serving(respond) as (url, _):
        resource = {"path": "/runs", "paging": {"by": "offset"}}
        tool = RestTool.model_validate({"source": "rest", "url": url, "days": 0, "resources": {"runs": resource}})
        runs = ConfiguredTable(lake=tmp_path / "lake", tool_name="map", tool=tool, name="runs")
        assert counts(collect(runs)) == [(3, "collected")]
    found = runs.raw.read("all").to_pylist()
    assert sorted((row["id"], row["n"]) for row in found) == [("a", "1"), ("b", "2"), ("c", "2")]


def test_a_failing_api_keeps_collected_rows(tmp_path: Path) -> None:
    """A failed request leaves the collected rows of the day unchanged."""
    api = FakeApi()
    api.runs[today()] = [{"id": "a"}]
    with serving(api) as (url, _):
        collect(history(url, tmp_path))
    with serving(lambda path, body: (500, {}, b"")) as (url, _):
        runs = history(url, tmp_path)
        with pytest.raises(DataCollectionException, match="answered 500"):
            collect(runs)
    assert runs.raw.read(today().isoformat()).to_pylist() == [{"id": "a"}]


# --- databases ---


def test_a_database_is_asked_for_what_is_new(tmp_path: Path) -> None:
    """The next run asks from the highest value of the cursor on; a backfill asks for a range, and replaces it."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    described = {
        "table": "orders",
        "cursor": "changed",
        "key": "id",
        "look_back": 3600,
        "schema": {"columns": {"id": "integer", "changed": {"type": "timestamp", "zone": "UTC"}, "price": "integer"}},
    }
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, changed DATETIME, price INTEGER)"))
        insert = sa.text("INSERT INTO orders VALUES (:id, :changed, :price)")
        rows = [(1, "2024-01-01 10:00:00.000000", 5), (2, "2024-01-02 10:00:00.000000", 6)]
        connection.execute(insert, [{"id": id, "changed": at, "price": price} for id, at, price in rows])
    assert counts(collect(orders)) == [(2, "collected")]
    assert find_windows(orders)[0].since == "2024-01-02T09:00:00+00:00"
    with database.begin() as connection:
        connection.execute(insert, {"id": 3, "changed": "2024-01-02 09:30:00.000000", "price": 7})  # it comes late
        connection.execute(insert, {"id": 4, "changed": "2024-01-02 08:00:00.000000", "price": 8})  # it comes too late
    assert counts(collect(orders)) == [(1, "collected")]
    (range_,) = find_windows(orders, since=date(2024, 1, 2), until=date(2024, 1, 3))
    assert collect_window(orders, range_, again=True)["records_collected"] == 1
    assert sorted(orders.raw.read("all")["id"].to_pylist()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "hour"), [("text", ""), ("date", ""), ({"type": "timestamp", "zone": "UTC"}, " 10:00:00")]
)
def test_a_cursor_that_jumps_ahead_is_refused(tmp_path: Path, kind: Any, hour: str) -> None:
    """One row of the year 9999 does not end all collecting in silence: it is an error until it is corrected."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    columns = {"id": "integer", "day": kind}
    described = {"table": "orders", "cursor": "day", "key": "id", "schema": {"columns": columns}}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, day TEXT)"))
        connection.execute(sa.text(f"INSERT INTO orders VALUES (1, '2024-01-01{hour}')"))
    assert counts(collect(orders)) == [(1, "collected")]
    since = find_windows(orders)
    with database.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO orders VALUES (2, '9999-01-01{hour}'), (3, '2024-01-02{hour}')"))
    with pytest.raises(
        DataProcessingException, match=r"^day: 9999-01-01\S* is in the future, and would hide"
    ) as caught:
        collect(orders)
    assert (caught.value.error_code, find_windows(orders)) == ("DATA_ERROR", since)
    with database.begin() as connection:
        connection.execute(sa.text(f"UPDATE orders SET day = '2024-01-03{hour}' WHERE id = 2"))
    assert counts(collect(orders)) == [(2, "collected")]


def test_a_query_begins_where_it_is_said(tmp_path: Path) -> None:
    """The first run gives a query its `start` as `:since`; the next ones the highest value. Without it that is told."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    query = "SELECT day, sum(price) AS total FROM orders WHERE day >= :since GROUP BY day"
    described = {"query": query, "cursor": "day", "key": "day", "start": "2024-01-02"}
    (totals,) = tables(tmp_path / "lake", source="sql", url=url, tables={"totals": described})
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (day TEXT, price INTEGER)"))
        for day in (1, 2, 2, 3):
            connection.execute(sa.text(f"INSERT INTO orders VALUES ('2024-01-0{day}', 5)"))
    assert counts(collect(totals)) == [(2, "collected")]
    assert totals.raw.read("all").to_pylist() == [
        {"day": "2024-01-02", "total": "10"},
        {"day": "2024-01-03", "total": "5"},
    ]
    assert find_windows(totals)[0].since == "2024-01-03"
    del described["start"]
    (totals,) = tables(tmp_path / "other", source="sql", url=url, tables={"totals": described})
    with pytest.raises(DataCollectionException, match=r"asks for :since, .*: set cursor and start") as caught:
        collect(totals)
    assert caught.value.error_code == "CONFIGURATION_ERROR"


# --- processing ---


def test_a_window_is_processed_once(airports: ConfiguredTable) -> None:
    """A processed window is not processed again, until its steps change."""
    collect(airports)
    assert process(airports) == [(3, "processed", 1)]
    assert process(airports) == [(0, "already_processed", 0)]
    assert process(of_file(airports.lake.parent, steps=[{"sql": "FROM {rows}"}]))[0][1] == "processed"


def times_factor(rows: Any) -> Any:
    return rows.assign(lon=rows["lon"] * FACTOR)


def test_what_is_processed_again_is_read_anew(airports: ConfiguredTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the code of a step has changed, tables that read its rows are processed again after it."""
    described = {
        "airports": {"file": "airports.csv", "schema": airports.schema, "steps": [f"{__name__}:times_factor"]},
        "sums": {"file": "airports.csv", "steps": [{"sql": "SELECT sum(lon) AS lon FROM {table:map.airports}"}]},
    }
    found = tables(airports.lake, source="files", directory=airports.lake.parent, tables=described)
    for table in found:
        collect(table)
        process(table)
    monkeypatch.setattr(f"{__name__}.FACTOR", 2)
    assert windows_to_process(found[1]) == {}
    process_window(found[0], "all", again=True)
    assert list(windows_to_process(found[1])) == ["all"]


def as_integers(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("n").cast(pl.Int64))


def test_one_job_processes_several_windows(tmp_path: Path) -> None:
    """A window whose step raises an error of its library stops none of the others, and raises it where it is alone."""
    for name, text in {"a": "n\n1\n", "b": "n\nx\n", "c": "n\n2\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    table = of_file(tmp_path, file="*.csv", schema=None, steps=[f"{__name__}:as_integers"])
    collect(table)
    done = process_windows(table, ["a.csv", "b.csv", "c.csv"])
    assert (done["records_processed"], done["failed"]) == (2, ["b.csv"])
    assert set(table.processed.windows()) == {"a.csv", "c.csv"}
    with pytest.raises(pl.exceptions.InvalidOperationError):
        process_windows(table, done["failed"])


def exceed(_: Any) -> dict[str, Any]:
    raise SoftTimeoutError


def test_a_soft_timeout_ends_a_job_of_several_windows() -> None:
    """It is of the job, and not of the window that it comes in."""
    with pytest.raises(SoftTimeoutError):
        do_each([1, 2], exceed, {})


def test_rows_and_rejects_are_in_tables(airports: ConfiguredTable) -> None:
    """Each has a table of its own in the lake."""
    collect(airports)
    process(airports)
    assert airports.processed.read("all")["faa"].to_pylist() == ["A00", "A02", "A03"]
    assert airports.rejects.read("all")["row"].to_pylist() == [2]


def test_lost_rows_are_counted_as_dropped_by_their_step(airports: ConfiguredTable) -> None:
    """Rows that a step leaves out are in the balance, a number a step."""
    steps = [f"{__name__}:lose_a_row", {"sql": "FROM {rows} LIMIT 1"}]
    table = of_file(airports.lake.parent, steps=steps)
    collect(table)
    process(table)
    assert str(balance("map", [table, table])) == (
        f"map: 8 collected = 2 processed + 0 rejected + 2 dropped by {__name__}:lose_a_row + 4 dropped by sql"
    )


def test_the_balance_counts_rows_in_the_files(airports: ConfiguredTable) -> None:
    """The balance counts the rows in the files, before and after processing; what does not fit is rejected."""
    (airports.lake.parent / "airports.csv").write_text(AIRPORTS + "A04,far,-5\nA05\n")
    collect(airports)
    before = balance("map", [airports])
    assert (before.holds, str(before)) == (True, "map: 6 collected = 0 processed + 2 rejected + 4 not processed")
    process(airports)
    assert str(balance("map", [airports])) == "map: 6 collected = 3 processed + 3 rejected"
    assert sorted(reason for _, reason in reject_reasons([airports])) == [
        "has fewer values than there are columns",
        "is in Asia",
        "lon: 'far' is not a finite number",
    ]


def test_rejects_of_a_file_that_is_called_read_are_counted_once(tmp_path: Path) -> None:
    """So are called the rejects of deliveries."""
    (tmp_path / "read airports.csv").write_text(AIRPORTS)
    table = of_file(tmp_path, file="*.csv")
    collect(table)
    process(table)
    assert str(balance("map", [table])) == "map: 4 collected = 3 processed + 1 rejected"
    (tmp_path / "read airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    collect(table)
    assert reject_reasons([table]) == {}


def test_reasons_are_counted_by_rule(airports: ConfiguredTable) -> None:
    """Values that differ are one reason, with their number and three of them."""
    lines = "".join(f"B{number},it's {number},-5\n" for number in range(100))
    (airports.lake.parent / "airports.csv").write_text(AIRPORTS + lines + "C,-75,west\n")
    collect(airports)
    process(airports)
    assert reject_reasons([airports]) == {
        ("airports", """lon: … is not a finite number (such as "it's 0", "it's 1", "it's 2")"""): 100,
        ("airports", "tz: 'west' is not an integer of 64 bits"): 1,
        ("airports", "is in Asia"): 1,
    }


def test_reasons_of_checks_are_counted_by_rule(tmp_path: Path) -> None:
    """Whatever a check calls itself, and whatever its values are: numbers, texts of any length, dates, decimals."""
    rows = "".join(f"{n}.5,{n}.25,2024-01-0{n},2024-01-01T00:00:0{n}Z,{str(n) * 99}\n" for n in range(1, 5))
    (tmp_path / "orders.csv").write_text(f"price,cost,day,at,text\n{rows}")
    types = {"price": "float", "cost": "decimal(8, 2)", "day": "date", "at": {"type": "timestamp", "zone": "UTC"}}
    described = {
        "schema": {"columns": {**types, "text": "text"}},
        "steps": [{"check": "tests.pipeline.own_steps:LATE"}],
    }
    table = of_file(tmp_path, file="orders.csv", **described)
    collect(table)
    process(table)
    ((_, reason),) = reject_reasons([table])
    assert reason.startswith(
        "price: … less_than(0); cost: … is not below 0; day: … must be in 2030; at: … is too early; text: … "
        "str_length(None, 9) (such as 1.5, 2.5, 3.5)"
    )
    said = table.rejects.read("all")["reason"].to_pylist()[0]
    assert said == (
        "price: 1.5 less_than(0); cost: 1.25 is not below 0; day: 2024-01-01 must be in 2030; "
        f"at: 2024-01-01T00:00:01+00:00 is too early; text: '{'1' * 60}...' str_length(None, 9)"
    )


def test_lines_that_are_not_json_are_counted_by_rule(tmp_path: Path) -> None:
    """Wherever in the line the mistake is; the line itself is beside the reason."""
    lines = "".join(f'{{"faa": {" " * n}oops}}\n{{"faa": "{"x" * n}\\ud800"}}\n' for n in range(5))
    (tmp_path / "airports.ndjson").write_text(lines)
    table = of_file(tmp_path, file="airports.ndjson", schema=None, steps=[])
    collect(table)
    assert sorted(reject_reasons([table]).items()) == [
        (("airports", "is not JSON: Expecting value"), 5),
        (("airports", "is not JSON: surrogates not allowed"), 5),
    ]


def test_the_balance_shows_a_loss(airports: ConfiguredTable) -> None:
    """The balance does not hold when a file of rejects was deleted."""
    collect(airports)
    process(airports)
    airports.rejects.file_of("all").unlink()
    found = balance("map", [airports])
    assert (found.holds, str(found)) == (False, "map: 4 collected ≠ 3 processed + 0 rejected")


def test_rows_collected_again_are_unprocessed(airports: ConfiguredTable) -> None:
    """Rows that were collected again count as unprocessed, and old rejects no longer count."""
    collect(airports)
    process(airports)
    (airports.lake.parent / "airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    collect(airports)
    assert balance("map", [airports]).unprocessed == 3
    assert reject_reasons([airports]) == {}


def test_a_missing_window_is_a_data_error(airports: ConfiguredTable) -> None:
    """Processing a window that is not there raises DATA_ERROR."""
    with pytest.raises(DataProcessingException, match="has no window 'all': collect it first") as failed:
        process_window(airports, "all")
    assert failed.value.error_code == "DATA_ERROR"


# --- upkeep ---


def test_old_windows_go_and_stay_away(tmp_path: Path) -> None:
    """Windows before `keep_days` are removed from all layers, and not collected again."""
    old, new = today() - timedelta(days=9), today()
    (tmp_path / "airports.csv").write_text(f"faa,lon,tz,day\nA,-75,-5,{old}\nB,-75,-5,{new}\n")
    kept = of_file(tmp_path, partition="day")
    collect(kept)
    process(kept)
    table = of_file(tmp_path, partition="day", keep_days=5)
    expire_windows(table)
    for layer in table.layers:
        assert str(old) not in layer.windows()
    assert counts(collect(table)) == [(0, "already_collected")]
    assert list(table.raw.windows()) == list(table.processed.windows()) == [str(new)]
    assert balance("map", [table]).holds


def test_the_rejects_of_a_file_expire_with_the_last_of_its_windows(tmp_path: Path) -> None:
    """Where windows are days, what was wrong with a file is not called by one; while a window of it stays, it stays."""
    old, new = today() - timedelta(days=9), today()
    header = "faa,lon,tz,day\n"
    (tmp_path / "old.csv").write_text(f"{header}A,-75,-5,{old}\nB,far,-5,{old}\n")
    (tmp_path / "new.csv").write_text(f"{header}C,-75,-5,{old}\nD,-75,-5,{new}\nE,far,-5,{new}\n")
    (tmp_path / "none.csv").write_text(f"{header}F,far,-5,{new}\n")
    described = {"file": "*.csv", "partition": "day", "key": "faa", "steps": []}
    kept = of_file(tmp_path, **described)
    collect(kept)
    process(kept)
    expire_windows(kept)
    assert sorted(kept.rejects.windows()) == ["read new.csv", "read none.csv", "read old.csv"]
    table = of_file(tmp_path, **described, keep_days=5)
    assert expire_windows(table) == 3
    assert sorted(table.rejects.windows()) == ["read new.csv", "read none.csv"]
    collect(table)
    assert str(balance("map", [table])) == "map: 3 collected = 1 processed + 2 rejected"


def test_a_window_that_is_called_by_a_number_never_expires(tmp_path: Path) -> None:
    """A shop 1234 is not a year."""
    (tmp_path / "airports.csv").write_text("faa,lon,tz,shop\nA,-75,-5,1234\nB,-75,-5,2001\n")
    kept = of_file(tmp_path, partition="shop", keep_days=7)
    collect(kept)
    assert list(kept.raw.windows()) == ["1234"]


def test_api_days_that_expired_are_not_collected(tmp_path: Path) -> None:
    """A backfill leaves out the days that would be removed again."""
    runs = history("http://127.0.0.1:1", tmp_path, keep_days=5)
    found = find_windows(runs, since=today() - timedelta(days=30))
    assert [found[0].name, len(found)] == [(today() - timedelta(days=5)).isoformat(), 6]


def test_a_table_is_made_anew_from_its_landings(airports: ConfiguredTable) -> None:
    """A table that began as text gets types, and other windows, without asking the source."""
    folder = airports.lake.parent
    text = of_file(folder, schema=None, steps=[])
    collect(text)
    with pytest.raises(DataProcessingException, match="a table is never narrowed"):
        collect(airports)
    (folder / "airports.csv").unlink()
    divided = of_file(folder, partition="tz")
    assert rebuild_table(divided) == {"landings": 1, "rows": 4, "rejected": 0}
    process(divided)
    assert str(balance("map", [divided])) == "map: 4 collected = 3 processed + 1 rejected"
    assert divided.raw.read("-5")["lon"].to_pylist() == [-75.0, 75.0, -80.0, -90.0]


@pytest.mark.parametrize(("lost", "said"), [("manifest.json", "no landing has its rows"), ("00001.csv", "00001.csv")])
def test_a_table_that_cannot_be_made_anew_stays(airports: ConfiguredTable, lost: str, said: str) -> None:
    """Its rows stay where its landings are gone, or one of them is damaged."""
    collect(airports)
    (path,) = airports.lake.rglob(lost)
    path.write_bytes(b"")
    with pytest.raises(DataCollectionException, match=said):
        rebuild_table(airports)
    assert airports.raw.read("all").num_rows == 4


def test_a_table_is_made_anew_by_one_job_at_a_time(airports: ConfiguredTable) -> None:
    """Its lock stays the same file, so that whoever waits for it and whoever comes later wait for one another."""
    collect(airports)
    lock = (airports.raw.state / ".lock").stat().st_ino
    rebuild_table(airports)
    assert (airports.raw.state / ".lock").stat().st_ino == lock


def test_a_table_that_is_asked_for_in_another_way_is_made_anew(tmp_path: Path) -> None:
    """What was landed by day is passed over where a cursor asks for all rows now, which would be there twice."""
    by_day = {"path": "/o", "params": {"since": "{since}", "until": "{until}"}}
    by_cursor = {"path": "/o", "params": {"since": "{since}"}, "cursor": "n", "start": "0", "key": "id"}

    def collected(resource: dict[str, Any]) -> ConfiguredTable:
        (table,) = tables(tmp_path, source="rest", url=url, days=0, resources={"o": resource})
        if table.raw.windows():
            rebuild_table(table)
        collect(table)
        return table

    with serving(lambda path, body: as_json([{"id": "a", "n": 1}, {"id": "b", "n": 2}])) as (url, _):
        collected(by_day)
        table = collected(by_cursor)
    assert [(name, entry.rows) for name, entry in table.raw.windows().items()] == [("all", 2)]


def test_what_was_collected_by_a_cursor_is_made_anew(tmp_path: Path) -> None:
    """Each landing has what was new, so none of them goes but those that were asked for once more."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    described = {"table": "orders", "cursor": "id", "key": "id", "schema": {"columns": {"id": "integer"}}}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)
    for number in (0, 1, 2):
        with database.begin() as connection:
            if number == 0:
                connection.execute(sa.text("CREATE TABLE orders (id INTEGER)"))
            connection.execute(sa.text(f"INSERT INTO orders VALUES ({number})"))
        collect(orders)
    # The last row is asked for twice more, from the same value on, and a range by itself, which has none after its end.
    for _ in range(2):
        collect(orders)
    collect_window(orders, Window(since="0", until="1"))
    assert remove_leftovers(orders.lake, older_than=-1.0) == 1
    with database.begin() as connection:
        connection.execute(sa.text("DELETE FROM orders"))
    rebuild_table(orders)
    assert sorted(orders.raw.read("all")["id"].to_pylist()) == [0, 1, 2]


@pytest.mark.parametrize("is_first", [False, True])
def test_a_cursor_that_is_a_number_is_set_back_by_removing_landings(tmp_path: Path, is_first: bool) -> None:
    """One that is too high hides all rows before it, and its status says so; `rebuild` reads the other landings."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    types = {"id": "integer", "version": "integer"}
    described = {"table": "orders", "cursor": "version", "key": "id", "schema": {"columns": types}}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)

    def collected(*statements: str) -> tuple[list[int], str | None]:
        with database.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        collect(orders)
        return sorted(orders.raw.read("all")["id"].to_pylist()), status_of(orders)["cursor"]

    collected("CREATE TABLE orders (id INTEGER, version INTEGER)", "INSERT INTO orders VALUES (1, 7)")
    if is_first:
        shutil.rmtree(orders.lake)
    assert collected("INSERT INTO orders VALUES (2, 1000000)") == ([1, 2], "1000000")
    assert collected("INSERT INTO orders VALUES (3, 8)") == ([1, 2], "1000000")
    # From the one on that has it: those after it were asked from there.
    for landing in sorted((orders.lake / "landing/map/orders/all").iterdir())[0 if is_first else 1 :]:
        shutil.rmtree(landing)
    if is_first:
        with pytest.raises(
            DataCollectionException, match=r"no landing has its rows: .*, or remove .*lake/raw/map/orders$"
        ):
            rebuild_table(orders)
        shutil.rmtree(orders.raw.folder)
    assert rebuild_table(orders)["rows"] == (0 if is_first else 1)
    assert collected("UPDATE orders SET version = 9 WHERE id = 2") == ([1, 2, 3], "9")


def test_the_rejects_of_a_backfill_that_is_late_stay(tmp_path: Path) -> None:
    """A run that asked later, for other rows, has stored its own before: those of both are counted."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "price": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "id", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, price)"))
        connection.execute(sa.text("INSERT INTO orders VALUES (1, 'much'), (5, 'more')"))
    windows = (Window(since="1", until="5", cursor="id"), Window(since="5", cursor="id"))
    for landing in reversed([land(orders, window) for window in windows]):
        store_landing(landing, orders)
    assert orders.rejects.read("read all").num_rows == 2


@pytest.mark.parametrize("key", [["id"], ["id", "day"]])
def test_a_row_that_comes_again_takes_its_old_rejects_away(tmp_path: Path, key: list[str]) -> None:
    """With a cursor rejects are what is wrong now; what has no key stays, since nobody knows what it has become."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    types = {"id": "integer", "day": {"type": "date", "format": "%d.%m.%Y"}, "price": "integer", "changed": "integer"}
    described = {"table": "orders", "key": key, "cursor": "changed", "schema": {"columns": types}}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)

    def change(*rows: str) -> None:
        with database.begin() as connection:
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS orders (id, day, price, changed INTEGER)"))
            for row in rows:
                connection.execute(sa.text(f"DELETE FROM orders WHERE id = {row.partition(',')[0]}"))
                connection.execute(sa.text(f"INSERT INTO orders VALUES ({row})"))

    def wrong() -> list[str]:
        return sorted(orders.rejects.read("read all")["reason"].to_pylist())

    change(
        "1, '31.01.2024', 5, 1", "2, '31.01.2024', 'much', 1", "3, '31.01.2024', 'more', 1", "'x', '31.01.2024', 1, 1"
    )
    collect(orders)
    no_key = "id: 'x' is not an integer of 64 bits"
    assert [each.partition(": ")[2][:6] for each in wrong()[1:]] == ["'more'", "'much'"]
    change("2, '31.01.2024', 7, 2", "3, '31.01.2024', 'most', 2")
    collect(orders)
    assert wrong() == [no_key, "price: 'most' is not an integer of 64 bits"]
    assert str(balance("shop", [orders])) == ("shop: 4 collected = 0 processed + 2 rejected + 2 not processed")
    change("3, '31.01.2024', 7, 3")
    collect(orders)
    assert wrong() == [no_key]
    rebuild_table(orders)
    assert wrong() == [no_key]


def test_wrong_rows_with_one_key_are_all_rejected(tmp_path: Path) -> None:
    """None of them is in the table, so none is merged into another; rejects that go make no new row fewer."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "price": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "id", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, price)"))
        connection.execute(sa.text("INSERT INTO orders VALUES (1, 'much'), (1, 'more'), (2, 5)"))
    assert [done["records_collected"] for done in collect(orders)] == [3]
    assert str(balance("shop", [orders])) == "shop: 3 collected = 0 processed + 2 rejected + 1 not processed"
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("DELETE FROM orders"))
        connection.execute(sa.text("INSERT INTO orders VALUES (1, 7), (2, 5), (3, 'most')"))
    assert collect_window(orders, Window(cursor="id"))["records_collected"] == 2
    assert str(balance("shop", [orders])) == "shop: 3 collected = 0 processed + 1 rejected + 2 not processed"


def test_a_row_that_is_wrong_now_leaves_the_table(tmp_path: Path) -> None:
    """With a cursor as without one it is in one place; of an answer that is late that is where it was."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "price": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "changed", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)

    def change(*statements: str) -> None:
        with database.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    change("CREATE TABLE orders (id INTEGER, price, changed INTEGER)", "INSERT INTO orders VALUES (1, 7, 1), (2, 5, 2)")
    collect(orders)
    change("UPDATE orders SET price = 'much', changed = 3 WHERE id = 1")
    late = land(orders, *find_windows(orders))
    collect(orders)
    assert orders.raw.read("all")["id"].to_pylist() == [2]
    assert str(balance("shop", [orders])) == "shop: 2 collected = 0 processed + 1 rejected + 1 not processed"
    change("UPDATE orders SET price = 9, changed = 4 WHERE id = 1")
    collect(orders)
    store_landing(late, orders)
    assert sorted(orders.raw.read("all")["price"].to_pylist()) == [5, 9]
    rebuild_table(orders)
    assert sorted(orders.raw.read("all")["price"].to_pylist()) == [5, 9]


@pytest.mark.parametrize("policy", ["keep", "mark"])
def test_rows_that_are_gone_are_there_after_a_rebuild(tmp_path: Path, policy: str) -> None:
    """Older answers have them, as long as maintenance has not removed these."""
    (tmp_path / "inbox").mkdir()
    (table,) = tables(
        tmp_path / "lake",
        source="files",
        directory=str(tmp_path / "inbox"),
        tables={"orders": {"file": "orders.csv", "key": "id", "vanished_rows": policy}},
    )
    for content in ("id,v\n1,10\n2,20\n", "id,v\n1,11\n"):
        (tmp_path / "inbox/orders.csv").write_text(content)
        collect(table)
    before = table.raw.read("all").sort_by("id")
    rebuild_table(table)
    assert table.raw.read("all").sort_by("id").equals(before)


def test_rejects_of_an_earlier_version_stay(tmp_path: Path) -> None:
    """They lack the column by which later answers take rejects away, and do not keep these from being collected."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "price": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "id", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, price)"))
        connection.execute(sa.text("INSERT INTO orders VALUES (1, 'much'), (2, 5)"))
    collect(orders)
    (file,) = orders.rejects.folder.rglob("*.parquet")
    rows, entry = orders.rejects.read("read all").drop_columns("key"), read_entry(file)
    before = FileWriter(file, rows.schema)
    before.add(rows)
    before.close(entry)
    with database.begin() as connection:
        connection.execute(sa.text("INSERT INTO orders VALUES (3, 5)"))
    collect(orders)
    assert orders.rejects.read("read all").select(["row", "key"]).to_pylist() == [{"row": 1, "key": None}]
    assert sorted(orders.raw.read("all")["id"].to_pylist()) == [2, 3]


@pytest.mark.parametrize("seed", range(8))
def test_a_table_with_a_cursor_is_made_anew_as_it_was(tmp_path: Path, seed: int) -> None:
    """Rows that are gone at the source since are in older answers alone, also where a newer one asked for as much."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "changed": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "changed", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database, drawn, now = sa.create_engine(url, poolclass=sa.NullPool), random.Random(seed), 0
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER PRIMARY KEY, changed INTEGER)"))
    for _ in range(8):
        with database.begin() as connection:
            for _ in range(drawn.randrange(4)):
                row, now = drawn.randrange(6), now + drawn.randrange(2)
                connection.execute(sa.text(f"DELETE FROM orders WHERE id = {row}"))
                if drawn.random() < 0.7:
                    connection.execute(sa.text(f"INSERT INTO orders VALUES ({row}, {now})"))
        collect(orders)
    before = orders.raw.read("all").sort_by("id")
    for leftover in unneeded(orders.lake):
        shutil.rmtree(leftover)
    rebuild_table(orders)
    assert orders.raw.read("all").sort_by("id").equals(before)


@pytest.mark.parametrize(("first", "then", "left"), [("5", "'much'", 1), ("'much'", "5", 0)])
def test_an_answer_that_is_late_changes_no_rejects(tmp_path: Path, first: str, then: str, left: int) -> None:
    """What it says of a row is older than what is known of it now, whether that is right or wrong."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "price": "integer"}}
    described = {"table": "orders", "key": "id", "cursor": "id", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    database = sa.create_engine(url, poolclass=sa.NullPool)
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, price)"))
        connection.execute(sa.text(f"INSERT INTO orders VALUES (1, {first})"))
    late = land(orders, *find_windows(orders))
    with database.begin() as connection:
        connection.execute(sa.text(f"UPDATE orders SET price = {then}"))
    collect(orders)
    store_landing(late, orders)
    assert balance("shop", [orders]).rejected == left


def test_a_range_without_an_end_hides_no_row_before_it(tmp_path: Path) -> None:
    """A backfill up to now, before any run, is not the first run: that begins at the beginning."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"day": "date"}}
    described = {"table": "orders", "key": "id", "cursor": "day", "schema": types}
    (orders,) = tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described})
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text("CREATE TABLE orders (id INTEGER, day DATE)"))
        connection.execute(sa.text("INSERT INTO orders VALUES (1, '2026-01-01'), (2, '2026-01-05')"))
    collect_windows(orders, find_windows(orders, since=date(2026, 1, 4)))
    assert orders.raw.read("all")["id"].to_pylist() == ["2"]
    collect(orders)
    assert sorted(orders.raw.read("all")["id"].to_pylist()) == ["1", "2"]


def test_what_was_asked_for_by_another_cursor_is_asked_for_anew(tmp_path: Path) -> None:
    """A landing says up to where all was asked for by its own cursor alone, also where a table is made anew from it."""
    url, types = f"sqlite:///{tmp_path / 'shop.db'}", {"columns": {"id": "integer", "change": "integer"}}
    described = {"table": "orders", "key": "id", "schema": types}
    by_id, by_change = (
        tables(tmp_path / "lake", source="sql", url=url, tables={"orders": described | {"cursor": cursor}})[0]
        for cursor in ("id", "change")
    )
    database = sa.create_engine(url, poolclass=sa.NullPool)
    for statements in (
        ["CREATE TABLE orders (id INTEGER, change INTEGER)", "INSERT INTO orders VALUES (1, 1), (2, 2)"],
        ["UPDATE orders SET change = 3 WHERE id = 1", "INSERT INTO orders VALUES (3, 4)"],
    ):
        with database.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        collect(by_id)
    rebuild_table(by_change)
    collect(by_change)
    assert by_change.raw.read("all").sort_by("id")["change"].to_pylist() == [3, 2, 4]


def test_old_landings_go(airports: ConfiguredTable) -> None:
    """Of each window the newest landing stays, without what a reader has left in it; older ones go after a while."""
    collect(airports)
    (airports.lake.parent / "airports.csv").write_text(AIRPORTS.rsplit("A03")[0])
    collect(airports)
    assert remove_leftovers(airports.lake, older_than=3600.0) == 0
    (newest,) = landings_of(airports.lake, airports.tool_name, airports.name)
    (newest.folder / ".tmp-unpacked").touch()
    assert remove_leftovers(airports.lake, older_than=-1.0) == 2
    assert not (newest.folder / ".tmp-unpacked").exists()
    assert counts(collect(airports)) == [(0, "already_collected")]


def test_a_table_is_late_when_new_rows_are_expected(airports: ConfiguredTable) -> None:
    """As its `expect` says: after a day for daily rows."""
    assert lateness(airports, datetime.now(UTC) + timedelta(days=9)) is None
    collect(airports)
    table = of_file(airports.lake.parent, expect="daily")
    assert lateness(table) is None
    late = lateness(table, datetime.now(UTC) + timedelta(days=2))
    assert late is not None
    assert 86_300 < late < 86_500


def test_a_table_that_never_got_a_row_is_late(airports: ConfiguredTable) -> None:
    """From the first run on that expected rows, also where a delivery came without any."""
    file = airports.lake.parent / "airports.csv"
    file.write_text(AIRPORTS.partition("\n")[0] + "\n")
    table, in_two_days = of_file(airports.lake.parent, expect="daily"), datetime.now(UTC) + timedelta(days=2)
    assert lateness(table, in_two_days) is None
    expect_rows(table)
    collect(table)
    expect_rows(table)
    assert lateness(table) is None
    late = lateness(table, in_two_days)
    assert late is not None
    assert 86_300 < late < 86_500
    file.write_text(AIRPORTS)
    collect(table)
    assert lateness(table, datetime.now(UTC) + timedelta(hours=23)) is None


# --- the configuration ---


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["checkx"], "did you mean check?"),
        ([{"key": "id"}], "'key' is not a step"),
        ([{"stage": "deduplicate", "key": "id"}], "what was `stage` is the key now, and its options stand below it"),
        ([{"sql": "FROM {rows}, {table:map.airport}"}], "'map.airport' is not a table, as tool.table: did you mean"),
        (
            [{"enrich": {"table": "maps.roads", "on": "id", "columns": ["name"]}}],
            "'maps.roads' is not a table, as tool.table: must be one of map.airports",
        ),
        ([{"sql": "FROM {rows}, {table:map}"}], "'map' is not a table, as tool.table: must be one of map.airports"),
    ],
)
def test_steps_are_checked_before_anything_starts(tmp_path: Path, steps: Any, message: str) -> None:
    """A step that is not there is refused with its key, without the import of its module."""
    described = {"file": "a.csv", "steps": steps}
    settings = Settings(tools={"map": {"source": "files", "directory": tmp_path, "tables": {"airports": described}}})
    with pytest.raises(ConfigurationError, match=r"tools\.map\.tables\.airports\.steps: ") as refused:
        select_tables(settings)
    assert message in str(refused.value)


def test_tables_that_read_each_other_are_refused(tmp_path: Path) -> None:
    """They could never be processed."""
    read = {name: [{"sql": f"FROM {{rows}}, {{table:map.{name}}}"}] for name in "abc"}

    def select(**steps: Any) -> list[str]:
        described = {name: {"file": "a.csv", "steps": each} for name, each in steps.items()}
        tool = {"source": "files", "directory": tmp_path, "tables": described}
        return [table.name for table in select_tables(Settings(tools={"map": tool}))]

    assert select(a=read["b"], b=[{"function": "own:step", "reads": ["map.c"]}], c=[]) == ["a", "b", "c"]
    for back in (read["a"], [{"function": "own:step", "reads": "map.a"}]):
        with pytest.raises(ConfigurationError, match=r"map\.a, map\.b read each other"):
            select(a=read["b"], b=back, c=[])


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("stages", "steps"),
        ("measures", "steps, with `sql: SELECT"),
        ("group_by", "steps, with `sql: SELECT"),
        ("version", "the command `executor-adapter pipeline reprocess`"),
        ("compact", "to leave it out"),
    ],
)
def test_keys_that_tables_had_are_refused_with_what_they_are_now(tmp_path: Path, key: str, meant: str) -> None:
    """None of them is without effect in silence."""
    with pytest.raises(ConfigurationError, match=rf"\.a\.{key} is not a key: did you mean {re.escape(meant)}"):
        tables(tmp_path, source="files", directory=tmp_path, tables={"a": {"file": "a.csv", key: 1}})


def test_tables_are_selected_by_name(tmp_path: Path) -> None:
    """A tool stands for its tables; a name that is none is answered with the nearest right one; no tool is an error."""
    tables = {"airports": {"file": "a.csv"}, "roads": {"file": "b.csv"}}
    settings = Settings(tools={"map": {"source": "files", "directory": tmp_path, "tables": tables}, "own": {}})
    assert [table.full_name for table in select_tables(settings, ["map.roads"])] == ["map.roads"]
    assert [table.full_name for table in select_tables(settings, ["map"])] == ["map.airports", "map.roads"]
    with pytest.raises(ConfigurationError, match=r"'airports' is not a table, .*: did you mean map\.airports\?"):
        select_tables(settings, ["airports"])
    with pytest.raises(ConfigurationError, match="tools is missing: describe at least one tool"):
        select_tables(Settings())


def test_settings_that_contradict_are_refused(tmp_path: Path) -> None:
    """Before anything is collected."""
    with pytest.raises(ConfigurationError, match="with period, partition must be one column, a date"):
        of_file(tmp_path, partition=["a", "b"], period="month").check()


@pytest.mark.parametrize("name", ["look_back", "start", "vanished_windows"])
def test_settings_that_do_nothing_are_refused(tmp_path: Path, name: str) -> None:
    """Who sets them expects something of them."""
    value = {"look_back": 5, "start": "0", "vanished_windows": "delete"}[name]
    described = {"function": "shop:orders", name: value}
    (table,) = tables(tmp_path, source="function", tables={"orders": described})
    with pytest.raises(ConfigurationError, match=f"orders: {name} does nothing without"):
        table.check()


def test_sql_files_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other paths in it are, wherever the flow runs."""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/clean.sql").write_text("FROM {rows}")
    table = {"file": "a.csv", "steps": [{"sql": "rules/clean.sql"}]}
    described = {"source": "files", "directory": "inbox", "tables": {"a": table}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"tools": {"map": described}}))
    monkeypatch.chdir("/")
    assert [each.full_name for each in select_tables(load_config(tmp_path / "config.yaml"))] == ["map.a"]


# --- killed runs ---

RUN = """
import sys
from pathlib import Path
from tests.pipeline.test_configured_tables import collect, of_file, process

print("begins", flush=True)
table = of_file(Path(sys.argv[1]), partition="tz")
collect(table)
process(table)
"""


def large_folder(folder: Path) -> Path:
    folder.mkdir()
    lines = [f"A{n},{'far' if n % 500 == 0 else n % 90 - 45},{n % 12}" for n in range(12_000)]
    (folder / "airports.csv").write_text("faa,lon,tz\n" + "\n".join(lines) + "\nA\n")
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    run = subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "begins\n"
    return run


def end(run: subprocess.Popen[str]) -> int:
    run.communicate(timeout=PATIENCE)
    return run.returncode


def content(folder: Path) -> list[tuple[str, str]]:
    """All rows of all layers, in an order of their own; the folder that rejected rows name is left out."""
    layers = of_file(folder, partition="tz").layers
    return [
        (layer.layer, row.replace(str(folder), ""))
        for layer in layers
        for row in sorted(map(str, ds.dataset(layer.folder, partitioning="hive").to_table().to_pylist()))
    ]


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_killed_runs_and_two_at_once_end_in_the_same_lake(tmp_path: Path) -> None:
    """A run that is killed at 30 random moments and then run again, and two runs at once ten times: the same rows."""
    whole = large_folder(tmp_path / "whole")
    began = time.monotonic()
    assert end(start(whole)) == 0
    takes = time.monotonic() - began
    expected = content(whole)
    found = balance("map", [of_file(whole, partition="tz")])
    assert (found.holds, found.collected, found.unprocessed) == (True, 12_001, 0)

    killed, moments = large_folder(tmp_path / "killed"), random.Random(17)
    for _ in range(30):
        run = start(killed)
        time.sleep(moments.uniform(0, takes / 2))
        run.kill()
        end(run)
    assert end(start(killed)) == 0
    assert content(killed) == expected

    for number in range(10):
        twice = large_folder(tmp_path / f"twice{number}")
        both = [start(twice), start(twice)]
        assert [end(run) for run in both] == [0, 0]
        assert content(twice) == expected
