"""A window of the lake is written completely or not at all, once, even when its writer dies or has company."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pytest_mock import MockerFixture

from executor_adapter.error_codes import NEVER_RETRIED
from executor_adapter.exceptions import ConfigurationError, DataCollectionException, DataProcessingException
from executor_adapter.pipeline.disk import TEMPORARY
from executor_adapter.pipeline.lake import stored
from executor_adapter.pipeline.lake import table as module
from executor_adapter.pipeline.lake.stored import ROW_GROUP, SAMPLE, opened, rows_in
from executor_adapter.pipeline.lake.table import LakeTable, remove_windows
from executor_adapter.pipeline.upkeep import remove_leftovers
from tests.pipeline.lakes import ROWS, all_rows, at, lake_table, write, write_rows
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    """A window has its rows and what is known of it in one file, and nothing else is in the folder of the table."""
    table = lake_table(tmp_path)
    result = write(table, "2013-01", ROWS, ROWS.slice(0, 1))
    assert (result.rows, result.added) == (4, 4)
    assert table.read("2013-01").equals(pa.concat_tables([ROWS, ROWS.slice(0, 1)]).combine_chunks())
    assert files(tmp_path / "raw") == ["shop/order lines/window=2013-01/rows.parquet"]
    entry = table.get("2013-01")
    assert entry.fingerprint == "v1"
    assert (entry.rows, table.windows()) == (4, {"2013-01": entry})
    assert table.find("2013-02") is None
    assert list((tmp_path / ".writing").iterdir()) == []


def test_a_window_is_replaced(tmp_path: Path) -> None:
    """Without a key, the rows that a window had are gone when it is written again."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)
    result = write(table, "w", ROWS.slice(2), fingerprint="v2")
    assert (result.rows, result.added) == (1, 0)
    assert table.read("w").equals(ROWS.slice(2))
    assert table.get("w").fingerprint == "v2"


@pytest.mark.parametrize("harm", ["gone", "older", "cut off", "of another version"])
def test_the_index_is_made_again(tmp_path: Path, mocker: MockerFixture, harm: str) -> None:
    """Windows are what their files say, whatever the index is; then it has them, and no file is opened any more."""
    table = lake_table(tmp_path)
    write(table, "a", ROWS)
    write(table, "b", ROWS)
    before, index = table.windows(), table.state / "index.json"
    old = index.read_bytes()
    match harm:
        case "gone":
            index.unlink()
        case "older":
            write(table, "a", ROWS.slice(2), fingerprint="v2")
            remove_windows(table, ["b"])
            write(table, "c", ROWS)
            table.windows()
            index.write_bytes(old)
        case "cut off":
            index.write_bytes(old[:-9])
        case _:
            index.write_bytes(old.replace(b"fingerprint", b"digest"))
    found = table.windows()
    expected = [("a", 1, "v2"), ("c", 3, "v1")] if harm == "older" else [("a", 3, "v1"), ("b", 3, "v1")]
    assert [(each.window, each.rows, each.fingerprint) for each in found.values()] == expected
    assert (found == before) == (harm != "older")
    opened = mocker.spy(stored, "opened")
    assert (table.windows(), opened.call_count) == (found, 0)


def test_an_empty_window_has_its_columns(tmp_path: Path) -> None:
    """A window without rows is one that was collected; without even a batch there would be no columns."""
    table = lake_table(tmp_path)
    assert write(table, "w", ROWS.slice(0, 0)).rows == 0
    assert table.read("w").equals(ROWS.slice(0, 0))
    with pytest.raises(ValueError, match="add a batch, even one without rows"):
        write(table, "other")


@pytest.mark.parametrize("more", [{}, {"list": [[1]] * SAMPLE}])
def test_a_column_of_different_values_is_written_without_a_dictionary(tmp_path: Path, more: dict[str, Any]) -> None:
    """A dictionary is for values that come again; a table with nested columns is written as Parquet has it."""
    table, numbers = lake_table(tmp_path), range(SAMPLE)
    rows = pa.table({"id": numbers, "kind": [f"kind {each % 9}" for each in numbers]} | more)
    write(table, "w", rows)
    with pq.ParquetFile(table.file_of("w")) as file:
        columns = [file.metadata.row_group(0).column(number) for number in (0, 1)]
    assert [column.has_dictionary_page for column in columns] == [bool(more), True]
    assert table.read("w").equals(rows)


def test_a_window_is_read_by_row_groups(tmp_path: Path) -> None:
    """Each part has at most the rows of a row group; a window without rows has one part, with its columns."""
    table = lake_table(tmp_path)
    rows = pa.table({"n": range(ROW_GROUP + 10)})
    write(table, "w", rows, rows)
    sizes = [each.num_rows for each in rows_in(table.file_of("w"))]
    assert (max(sizes), sum(sizes)) == (ROW_GROUP, 2 * rows.num_rows)
    write(table, "w", rows.slice(0, 0))
    assert [each.schema.names for each in rows_in(table.file_of("w"))] == [["n"]]


def _fail_while_writing(table: Any) -> None:
    with table.writing("w", fingerprint="v2") as writer:
        writer.add(ROWS.slice(1))
        assert table.read("w").equals(ROWS)
        raise ZeroDivisionError


def test_an_error_while_writing_keeps_the_old_window(tmp_path: Path) -> None:
    """A block that raises leaves the old rows and nothing else."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)
    with pytest.raises(ZeroDivisionError):
        _fail_while_writing(table)
    assert table.read("w").equals(ROWS)
    assert table.get("w").fingerprint == "v1"
    assert list((tmp_path / ".writing").iterdir()) == []


@pytest.mark.parametrize("harm", [lambda file: file[:-1], lambda file: file.replace(b"bbbb", b"bbbc")])
def test_a_damaged_file_is_told(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    """A file that is cut, or has a changed byte, is not read as if it were right."""
    table = lake_table(tmp_path)
    write(table, "w", pa.table({"a": ["bbbb"]}))
    path = table.file_of("w")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataProcessingException, match=r"is damaged: .*: remove it, and process its") as caught:
        table.read("w")
    assert caught.value.error_code in NEVER_RETRIED


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        pa.ArrowCancelled("Operation cancelled"),
        pa.ArrowNotImplementedError("Support for codec 'zstd' not built"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_system_refuses_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A good file is never called damaged, whatever else goes wrong while it is open."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)

    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(pq, "ParquetFile", refuse)
        with pytest.raises(type(error)) as caught:
            table.find("w")
    assert caught.value is error
    with pytest.raises(pa.ArrowInvalid, match="mine"), opened(table.file_of("w")):
        raise pa.ArrowInvalid("mine")


def test_a_file_of_somebody_else_is_told(tmp_path: Path) -> None:
    """A Parquet file that the lake did not write is named."""
    table = lake_table(tmp_path)
    path = table.file_of("w")
    path.parent.mkdir(parents=True)
    pq.write_table(ROWS, path)
    with pytest.raises(DataProcessingException, match="is damaged"):
        table.find("w")


def test_a_file_of_another_version_is_told(tmp_path: Path) -> None:
    """It is not called damaged: the command that makes its table anew is named."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)
    before = {"window": "w", "rows": 3, "fingerprint": "v1", "ranges": [{"collected_at": "2026-01-01"}]}
    rows = ROWS.replace_schema_metadata({"executor_adapter.window": json.dumps(before)})
    pq.write_table(rows, table.file_of("w"))
    for look in (table.windows, lambda: table.find("w")):
        with pytest.raises(DataProcessingException, match="is of another version: `executor-adapter pipeline rebuild"):
            look()


@pytest.mark.parametrize("window", ["America/New_York", "..", ".", "a b", "x%2Fy", ".tmp-1", "a=b", "ü", "2013"])
def test_a_window_of_any_name_is_one_folder(tmp_path: Path, window: str) -> None:
    """Each window is one folder, whatever characters its name has."""
    table = lake_table(tmp_path)
    write(table, window, ROWS)
    assert [path.parent for path in table.folder.rglob("*.parquet")] == [table.file_of(window).parent]
    assert list(table.windows()) == [window]
    assert table.read(window).equals(ROWS)


# --- columns ---


def test_columns_are_added_and_widened(tmp_path: Path) -> None:
    """All windows have the same columns afterwards, and each value is what it was."""
    table = lake_table(tmp_path)
    write(table, "1", pa.table({"a": [1], "b": ["x"], "d": pa.array([Decimal("1.5")], pa.decimal128(4, 1))}))
    later = pa.table({"a": [2.5], "d": pa.array([Decimal("22.25")], pa.decimal128(6, 2)), "c": ["y"]})
    write(table, "2", later)
    assert all_rows(table) == [
        {"a": 1.0, "b": "x", "d": Decimal("1.50"), "c": None},
        {"a": 2.5, "b": None, "d": Decimal("22.25"), "c": "y"},
    ]
    assert table.get("1").fingerprint == "v1"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (pa.array([2.5]), pa.array([2])),
        (pa.array(["1"]), pa.array([1])),
        (pa.array([1]), pa.array(["1"])),
        (pa.array([Decimal("2.5")], pa.decimal128(5, 2)), pa.array([Decimal("2.5")], pa.decimal128(5, 1))),
        (pa.array([1]), pa.array([Decimal(1)], pa.decimal128(10, 2))),
        (pa.array([0], pa.timestamp("us", "UTC")), pa.array([0], pa.date32())),
    ],
)
def test_a_narrowing_is_refused(tmp_path: Path, old: pa.Array, new: pa.Array) -> None:
    """A column that would lose something keeps its type, the rows are refused, and the message names it."""
    table = lake_table(tmp_path)
    write(table, "1", pa.table({"a": old}))
    with pytest.raises(DataProcessingException, match=r"column a: the table has .* is never narrowed") as caught:
        write(table, "2", pa.table({"a": new}))
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert table.read("1")["a"].type == old.type
    assert list(table.windows()) == ["1"]


def test_a_widening_that_would_change_a_value_is_refused(tmp_path: Path) -> None:
    """An integer that no float has keeps the table as it is, in all of its windows."""
    table = lake_table(tmp_path)
    write(table, "0", pa.table({"a": [1]}))
    write(table, "1", pa.table({"a": [2**53 + 1]}))
    with pytest.raises(DataProcessingException, match=r"a: .*not in range") as caught:
        write(table, "2", pa.table({"a": [0.5]}))
    assert caught.value.error_code in NEVER_RETRIED
    assert all_rows(table) == [{"a": 1}, {"a": 2**53 + 1}]
    assert {table.read(window).schema for window in table.windows()} == {pa.schema({"a": pa.int64()})}


@pytest.mark.parametrize("values", [pa.array([2]), pa.array([], pa.int64()), pa.array([], pa.string())])
def test_the_columns_of_what_is_computed_are_those_of_the_table(tmp_path: Path, values: pa.Array) -> None:
    """A step's types may follow the values of a window; readers of the folder take all files for one table."""
    table = replace(lake_table(tmp_path), layer="processed")
    write(table, "2", pa.table({"a": [1.5]}))
    write(table, "1", pa.table({"a": values}))
    found = duckdb.sql(f"SELECT a FROM read_parquet('{table.folder}/*/rows.parquet')").fetchall()
    assert found == [(each,) for each in (*values.to_pylist(), 1.5)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["window"], "the column window has a name that the lake uses"),
        (["_row"], "the column _row has a name that the lake uses"),
        (["_Reason"], "the column _Reason has a name that the lake uses"),
        (["file_row_number"], "the column file_row_number has a name that the lake uses"),
        (["a", "a"], "'a' is there twice"),
        (["Id", "id"], "'id' is there twice"),
    ],
)
def test_names_that_cannot_be_stored_are_refused(tmp_path: Path, columns: list[str], message: str) -> None:
    """A column cannot have the name of what readers get beside the rows, nor that of another one, in any case."""
    rows = pa.Table.from_arrays([pa.array([1])] * len(columns), names=columns)
    with pytest.raises(DataProcessingException, match=message) as caught:
        write(lake_table(tmp_path), "w", rows)
    assert caught.value.error_code in NEVER_RETRIED


def test_intervals_are_refused(tmp_path: Path) -> None:
    """Arrow writes none to Parquet."""
    days = pa.table({"d": pa.array([(0, 1, 0)], pa.month_day_nano_interval())})
    with pytest.raises(DataProcessingException, match="column d: the lake has no intervals: make a number"):
        write(lake_table(tmp_path), "w", days)


def test_variants_of_a_type_are_one_type(tmp_path: Path) -> None:
    """What libraries make of text, moments and small numbers does not change a table, unless it has more."""
    table = lake_table(tmp_path)
    nothing = pa.nulls(1)
    moment = pa.array([1000], pa.timestamp("ns", "UTC"))
    write(table, "1", pa.table({"t": pa.array(["x"], pa.large_string()), "n": pa.array([1], pa.int16()), "m": nothing}))
    write(table, "2", pa.table({"t": pa.array(["y"]).dictionary_encode(), "n": [2**40], "m": moment}))
    write(table, "3", pa.table({"t": nothing, "n": [3], "m": nothing}))
    schema = table.schema()
    assert schema == pa.schema([("t", pa.string()), ("n", pa.int64()), ("m", pa.timestamp("us", "UTC"))])
    assert [row["t"] for row in all_rows(table)] == ["x", "y", None]
    with pytest.raises(DataProcessingException, match=r"m: .*would lose data") as caught:
        write(table, "4", pa.table({"m": pa.array([1001], pa.timestamp("ns", "UTC"))}))
    assert caught.value.error_code == "DATA_ERROR"


def test_batches_may_differ_in_their_columns(tmp_path: Path) -> None:
    """A column that comes later is null in the rows before, and one that a batch lacks is null in it."""
    table = lake_table(tmp_path)
    write(table, "w", pa.table({"a": [1]}), pa.table({"b": ["x"], "a": [2]}), pa.table({"a": [3]}))
    assert all_rows(table) == [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": 3, "b": None}]


# --- killed writers ---

KILLED = """
import os, shutil, signal, sys
import duckdb
import pyarrow as pa
from pathlib import Path
from tests.pipeline.lakes import ROWS, lake_table, write

def dying(original, number, calls):
    def call(*args, **kwargs):
        calls.append(original)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    return call

def write_and_die(number, root, column):
    shutil.copytree(root / "template", root / str(number))
    table = lake_table(root / str(number))
    calls = []
    steps = (Path.rename, Path.unlink, os.rmdir, os.fsync)
    Path.rename, Path.unlink, os.rmdir, os.fsync = (dying(step, number, calls) for step in steps)
    write(table, "2", pa.table({"id": [9], column: ["z"]}), fingerprint="v2")

# Nothing of Arrow has run in this process, so it has no thread that a fork would lose.
for number in range(1, 60):
    if os.fork() == 0:
        write_and_die(number, Path(sys.argv[1]), sys.argv[2])
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    if code != -signal.SIGKILL:
        print(number)
        sys.exit(code)
"""


@pytest.mark.parametrize(
    "column", [pytest.param("note", id="a window", marks=pytest.mark.chaos), pytest.param("new", id="all windows")]
)
def test_a_writer_killed_at_any_point_leaves_a_whole_table(tmp_path: Path, column: str, mocker: MockerFixture) -> None:
    """At each step to the disk: the table has its old rows or the new ones, and the next writer goes on.

    Where some windows have other columns already, whoever looks at the table next gives them to all, and says so.
    """
    for window in ("1", "2"):
        write(lake_table(tmp_path / "template"), window, ROWS)
    command = [sys.executable, "-c", KILLED, str(tmp_path), column]
    done = subprocess.run(command, cwd=ROOT, timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log, outcomes, cut_short = mocker.patch.object(module, "log"), set(), False
    for number in range(1, int(done.stdout)):
        table = lake_table(tmp_path / str(number))
        is_mixed = len({tuple(pq.read_schema(file).names) for file in table.folder.rglob("*.parquet")}) == 2
        windows = table.windows()
        assert len({tuple(pq.read_schema(file).names) for file in table.folder.rglob("*.parquet")}) == 1
        assert sum("killed on the way" in call.args[0] for call in log.mock_calls) >= is_mixed
        cut_short |= is_mixed
        log.reset_mock()
        assert (list(windows), windows["1"].rows) == (["1", "2"], 3)
        outcomes.add(windows["2"].fingerprint)
        assert len(all_rows(table)) == 3 + windows["2"].rows
        write(table, "2", ROWS, fingerprint="v3")
        assert len(all_rows(table)) == 6
        remove_leftovers(table.root, older_than=-60)
        assert list((table.root / ".writing").iterdir()) == []
        assert files(table.state) == [".lock", "index.json"]
    assert outcomes == {"v1", "v2"}
    assert cut_short == (column == "new")


def test_the_windows_of_tables_are_not_searched_for_leftovers(tmp_path: Path) -> None:
    """Only the other folders are walked, since a lake has thousands of windows; no writer leaves anything in theirs."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)
    left = [tmp_path / ".tmp-a", table.state / ".tmp-b", tmp_path / "landing" / "tool" / "t" / ".days" / ".tmp-c"]
    for path in (*left, table.file_of("w").with_name(".tmp-of-others")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert remove_leftovers(tmp_path, older_than=-60) == 3
    assert [path for path in left if path.exists()] == []


def test_leftovers_of_a_living_writer_stay(tmp_path: Path) -> None:
    """What was written to a moment ago has a writer."""
    with lake_table(tmp_path).writing("w", fingerprint="v1") as writer:
        writer.add(ROWS)
        assert remove_leftovers(tmp_path, older_than=60) == 0
    assert len(all_rows(lake_table(tmp_path))) == 3


# --- company ---

WRITER = """
import sys
import duckdb
import pyarrow as pa
from pathlib import Path
from tests.pipeline.lakes import lake_table

number, root = int(sys.argv[1]), Path(sys.argv[2])
table = lake_table(root)
for turn in range(4):
    with table.writing("w", fingerprint=f"v{number}") as writer:
        writer.add(pa.table({"a": [number] * (number + 1)}))
    with table.writing(f"own {number}", fingerprint="v") as writer:
        writer.add(pa.table({"a": [number], f"b{number}": ["x"]}))
    rows = table.read("w")["a"].to_pylist()
    assert len(rows) == rows[0] + 1, rows
"""


def test_processes_write_the_same_table(tmp_path: Path) -> None:
    """Processes that write the same window, and add columns to the table, never mix or lose their rows."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number), str(tmp_path)], cwd=ROOT) for number in range(3)
    ]
    assert [writer.wait(PATIENCE) for writer in writers] == [0, 0, 0]
    table = lake_table(tmp_path)
    assert set(table.windows()) == {"w", "own 0", "own 1", "own 2"}
    assert {name for row in all_rows(table) for name in row} == {"a", "b0", "b1", "b2"}
    assert [row["a"] for row in all_rows(table)][:3] == [0, 1, 2]


def test_a_newer_answer_is_not_overwritten(tmp_path: Path) -> None:
    """Of two runs at once, the one that asked the source later wins, whichever ends first."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS, collected_at=at(2), fingerprint="new")
    late = write(table, "w", ROWS.slice(1), collected_at=at(1), fingerprint="old")
    assert (late.rows, late.added) == (0, 0)
    assert table.get("w").fingerprint == "new"
    write(table, "w", ROWS.slice(1), collected_at=at(3), fingerprint="newer")
    assert table.read("w").equals(ROWS.slice(1))


def test_an_open_window_is_read_to_its_end(tmp_path: Path) -> None:
    """Who reads a window while it is replaced, and its columns change, sees one version, and nobody waits for it."""
    table = lake_table(tmp_path)
    rows = pa.table({"id": range(2 * ROW_GROUP)})
    write(table, "w", rows)
    parts = rows_in(table.file_of("w"))
    first = next(parts)
    write(table, "w", pa.table({"id": [9], "more": ["x"]}))
    assert pa.concat_tables([first, *parts]).equals(rows)
    assert table.read("w").num_rows == 1


def test_a_lock_is_given_up_in_time(tmp_path: Path) -> None:
    """Who waits for another writer too long says so, and is retried."""
    table = lake_table(tmp_path, lock_timeout=0.1)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with table.exclusive():
            held.set()
            done.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    held.wait()
    with pytest.raises(DataCollectionException, match="has held the lock") as caught:
        write(table, "w", ROWS)
    done.set()
    holder.join()
    assert caught.value.error_code == "LOCKED"


def write_to_full_disk(table: LakeTable) -> None:
    with table.writing("w", fingerprint="v1") as writer:
        (space,) = (table.root / ".writing").iterdir()
        (space / "part0.parquet").symlink_to("/dev/full")
        writer.add(ROWS)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """What a full disk refuses has a code that is retried, and nothing is left of the window."""
    with pytest.raises(DataCollectionException, match="No space left on device") as caught:
        write_to_full_disk(lake_table(tmp_path))
    assert caught.value.error_code == "DISK_FULL"
    assert list((tmp_path / ".writing").iterdir()) == []


def test_a_policy_without_a_key_is_refused(tmp_path: Path) -> None:
    """Rows cannot be kept or marked where nothing tells which is which."""
    with pytest.raises(ConfigurationError, match="vanished_rows: 'mark' needs a key"):
        lake_table(tmp_path, vanished_rows="mark")
    with pytest.raises(
        DataProcessingException, match="there is no column id: the columns are a: set key or cursor to one"
    ):
        write_rows(lake_table(tmp_path, key=("id",)), "w", [{"a": 1}])
    assert os.listdir(tmp_path) in ([], [".writing"])


def test_a_table_on_a_full_disk_is_read(tmp_path: Path) -> None:
    """Its windows are known, so that old ones can be removed, although its index cannot be written."""
    table = lake_table(tmp_path)
    write(table, "w", ROWS)
    index = table.state / f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-index.json"
    index.symlink_to("/dev/full")
    assert list(table.windows()) == ["w"]
    assert not index.is_symlink()
