"""Archives and Parquet are read like plain files, and broken ones are errors that are not retried."""

from __future__ import annotations

import gzip
import io
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pytest_mock import MockerFixture

from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.loading import Loader, by_window
from executor_adapter.pipeline.sources.unpacking import unpacked
from executor_adapter.pipeline.text_rows import connected, together
from tests.pipeline.reading import failure, read

ROWS = [{"a": "1", "b": "2"}]
PLAIN = b"a,b\n1,2\n"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def damaged(compression: int) -> bytes:
    """Return an archive in whose member some bytes are others."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a.csv", PLAIN * 999)
    content = bytearray(buffer.getvalue())
    content[50:60] = b"\xff" * 10
    return bytes(content)


def damaged_parquet() -> bytes:
    """Return a file of Parquet whose first page is damaged, and whose footer is not."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": ["1", "2"]}), buffer)
    content = bytearray(buffer.getvalue())
    content[4:14] = b"\xff" * 10
    return bytes(content)


def encrypted() -> bytes:
    """Return an archive whose member says that it is encrypted, as unpackers see it."""
    content = bytearray(zipped(a_csv=PLAIN))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def test_archives_are_read_like_plain_files(tmp_path: Path) -> None:
    """ZIP and gzip are known by their first bytes, also where the name does not say so."""
    assert read(tmp_path, gzip.compress(PLAIN), ".csv.gz")[0] == ROWS
    assert read(tmp_path, gzip.compress(PLAIN), ".csv")[0] == ROWS
    assert read(tmp_path, zipped(rows_csv=PLAIN), ".zip")[0] == ROWS
    assert read(tmp_path, zipped(rows_tsv=PLAIN.replace(b",", b"\t")), ".zip")[0] == ROWS
    assert read(tmp_path, zipped(rows_json=b'[{"a": 1, "b": 2}]'), ".zip")[0] == ROWS
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == []


def test_an_archive_has_one_file(tmp_path: Path) -> None:
    """Of several none is chosen."""
    error = failure(tmp_path, zipped(a_csv=PLAIN, b_csv=b"c\n3\n"), ".zip")
    assert error.error_code == "DATA_ERROR"
    assert str(error).endswith("the archive has 2 files: pack one alone")


@pytest.mark.parametrize(
    ("content", "suffix", "said"),
    [
        (encrypted(), ".zip", "is encrypted, password required"),
        (zipped(a_csv=PLAIN * 99)[:-60], ".zip", "the archive is broken"),
        (gzip.compress(PLAIN * 99)[:-4], ".csv.gz", "the archive is broken"),
        (gzip.compress(PLAIN)[:-8] + b"\0" * 8, ".csv.gz", "the archive is broken"),
        (damaged(zipfile.ZIP_LZMA), ".zip", "the archive is broken"),
        (damaged(zipfile.ZIP_BZIP2), ".zip", "the archive is broken"),
        (b"PAR1 is not all of it", ".parquet", "is not Parquet"),
        (damaged_parquet(), ".parquet", "there is not Parquet"),
    ],
    ids=["encrypted", "cut ZIP", "cut gzip", "gzip", "LZMA", "bzip2", "cut Parquet", "Parquet"],
)
def test_broken_files_are_data_errors(tmp_path: Path, content: bytes, suffix: str, said: str) -> None:
    """An encrypted, cut off or damaged file is a DATA_ERROR: it cannot get better."""
    error = failure(tmp_path, content, suffix)
    assert error.error_code == "DATA_ERROR"
    assert said in str(error)


def test_very_many_columns_are_a_data_error(tmp_path: Path) -> None:
    """A header of tens of thousands of names is refused before anything is read, in one line."""
    names = [f"c{number}" for number in range(20_000)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: ["1"] for name in names}), buffer)
    wide = ",".join(names).encode() + b"\n" + b",".join([b"1"] * 20_000)
    for content, suffix in ((wide, ".csv"), (buffer.getvalue(), ".parquet")):
        error = failure(tmp_path, content, suffix, delimiter=",")
        assert error.error_code == "DATA_ERROR"
        assert "it has 20,000 columns, and 2,000 are read at most" in str(error)


def test_an_archive_that_fills_the_disk_is_refused(tmp_path: Path) -> None:
    """Unpacking stops at its limit, and leaves nothing."""
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"0" * (64 << 20)))
    with pytest.raises(DataCollectionException, match="unpacks to more than 1,000,000 bytes"):
        with unpacked(bomb, max_bytes=1_000_000):
            pass
    assert list(tmp_path.iterdir()) == [bomb]


def test_progress_counts_what_is_unpacked_apart(tmp_path: Path, mocker: MockerFixture) -> None:
    """A packed file that was received with its bytes counted is unpacked with a count and a unit of its own."""
    progress = mocker.patch("executor_adapter.pipeline.sources.unpacking.progress")
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(b"a\n1\n"))
    with unpacked(packed, max_bytes=100) as (plain, _):
        assert plain.read_bytes() == b"a\n1\n"
    assert [call.args for call in progress.call_args_list] == [(4, None, "bytes unpacked")]


def test_parquet_is_read_as_text(tmp_path: Path) -> None:
    """Every type of Parquet becomes text as a person would write it; nested values become JSON."""
    table = pa.table(
        {
            "n": pa.array([1, None], pa.int32()),
            "f": [1.5, 1e300],
            "d": [Decimal("1.50"), None],
            "t": pa.array([datetime(2013, 1, 2, 3, 4, 5, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "l": [[1, 2], None],
            "b": [b"\xff", None],
            "o": [True, False],
            "c": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, buffer := io.BytesIO())
    first, second = read(tmp_path, buffer.getvalue(), ".parquet")[0]
    assert first == {
        "n": "1",
        "f": "1.5",
        "d": "1.50",
        "t": "2013-01-02 03:04:05.000000Z",
        "l": "[1, 2]",
        "b": "/w==",
        "o": "true",
        "c": "x",
    }
    assert (second["n"], second["f"], second["o"]) == (None, "1e+300", "false")


def test_a_name_that_does_not_say_what_it_is_is_a_configuration_error(tmp_path: Path) -> None:
    """Without a known suffix, `format` must be set."""
    assert failure(tmp_path, PLAIN, ".data").error_code == "CONFIGURATION_ERROR"
    assert read(tmp_path, PLAIN, ".data", format="csv")[0] == ROWS


# --- windows ---


def batch(**columns: list[str | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(values, pa.string()) for name, values in columns.items()})


def divide(space: Path, batches: list[pa.RecordBatch], *partition: str, period: str | None = None) -> list[Any]:
    with connected(space) as connection:
        loader = Loader(connection, None, partition, period)
        loaded = [each for text in together(batches) for each in loader.load(text)]
    return [part for each in loaded for part in by_window(each)]


def test_one_pass_divides_rows_into_windows(tmp_path: Path) -> None:
    """Each row is in the window of its values, in order, also where one is missing; months sort as text."""
    batches = [
        batch(y=["2013", "2013", "2014"], m=["1", "12", None], n=["a", "b", "c"]),
        batch(y=["2013"], m=["1"], n=["d"]),
    ]
    found = [(name, rows["n"].to_pylist()) for name, rows in divide(tmp_path, batches, "y", "m")]
    assert found == [("2013-01", ["a", "d"]), ("2013-12", ["b"]), ("2014-null", ["c"])]


def test_a_period_of_a_date_is_a_window(tmp_path: Path) -> None:
    """Of a date only the year, the month or the day is taken; what is not a date has a window of its own."""
    rows = batch(t=["2013-01-31T05:00:00Z", "2013-02-01 06:00", "soon", None])
    for period, names in {
        "year": ["2013", "null"],
        "month": ["2013-01", "2013-02", "null"],
        "day": ["2013-01-31", "2013-02-01", "null"],
    }.items():
        assert [name for name, _ in divide(tmp_path, [rows], "t", period=period)] == names


def test_a_missing_window_column_is_a_configuration_error(tmp_path: Path) -> None:
    """A column that the rows lack is named, with those that there are."""
    with pytest.raises(DataCollectionException, match="there is no column m: the columns are a, b") as caught:
        divide(tmp_path, [batch(a=["1"], b=["2"])], "m")
    assert caught.value.error_code == "CONFIGURATION_ERROR"
