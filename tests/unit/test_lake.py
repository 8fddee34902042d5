"""A partition of the lake is complete or absent, even when its writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from executor_adapter.exceptions import DataProcessingException
from tasks import lake

ROOT = Path(__file__).resolve().parents[2]
ROWS = pa.table({"a": [1, 2, 3]})


@pytest.fixture
def partition(tmp_path: Path) -> lake.Partition:
    return lake.Partition(lake=tmp_path / "lake", layer="raw", tool="flights", table="weather", window="2013-01")


def write(partition: lake.Partition, rows: pa.Table = ROWS, fingerprint: str = "v1") -> None:
    write_batches(partition, fingerprint, rows)


def write_batches(partition: lake.Partition, fingerprint: str, *batches: pa.Table) -> None:
    with lake.writing(partition, fingerprint=fingerprint) as writer:
        for rows in batches:
            writer.add(rows)


def fail_while_writing(partition: lake.Partition) -> None:
    with lake.writing(partition, fingerprint="v2") as writer:
        writer.add(pa.table({"a": [9]}))
        assert lake.count_rows(partition) == 3  # readers do not see rows that are still being written
        raise ZeroDivisionError


def files(partition: lake.Partition) -> set[str]:
    return {path.name for path in partition.directory.iterdir()}


def test_written_rows_are_read_back(partition: lake.Partition) -> None:
    """A partition returns the rows, the manifest and the files that were written."""
    write(partition)
    assert lake.read(partition).equals(ROWS)
    assert partition.parquet == partition.lake / "raw/flights/weather/2013-01/part.parquet"
    manifest = lake.find_manifest(partition, "v1")
    assert manifest is not None
    assert (manifest.rows, lake.count_rows(partition)) == (3, 3)
    assert files(partition) == {"part.parquet", "manifest.json", ".lock"}


def test_a_manifest_is_found_only_for_its_fingerprint(partition: lake.Partition) -> None:
    """A partition is complete only for the fingerprint that it was written with."""
    assert lake.find_manifest(partition) is None
    write(partition)
    assert lake.find_manifest(partition) is not None
    assert lake.find_manifest(partition, "v2") is None


def test_batches_are_appended(partition: lake.Partition) -> None:
    """Several batches form one partition, in their order."""
    write_batches(partition, "v1", ROWS, ROWS)
    assert lake.read(partition)["a"].to_pylist() == [1, 2, 3, 1, 2, 3]


def test_a_batch_with_other_columns_is_rejected(partition: lake.Partition) -> None:
    """A batch whose columns differ from the first raises DATA_ERROR."""
    with pytest.raises(DataProcessingException) as caught:
        write_batches(partition, "v1", ROWS, pa.table({"b": [1]}))
    assert caught.value.error_code == "DATA_ERROR"
    assert lake.find_manifest(partition) is None


def test_an_error_while_writing_keeps_the_old_partition(partition: lake.Partition) -> None:
    """A block that raises leaves the old rows and no temporary file."""
    write(partition)
    with pytest.raises(ZeroDivisionError):
        fail_while_writing(partition)
    assert lake.read(partition).equals(ROWS)
    assert lake.find_manifest(partition, "v1") is not None
    assert files(partition) == {"part.parquet", "manifest.json", ".lock"}


def test_a_writer_can_read_the_previous_rows(partition: lake.Partition) -> None:
    """A writer can read the previous rows, to merge with them."""
    with lake.writing(partition, fingerprint="v1") as writer:
        assert writer.previous() is None
        writer.add(ROWS)
    with lake.writing(partition, fingerprint="v2") as writer:
        before = writer.previous()
        assert before is not None
        writer.add(pa.concat_tables([before, ROWS]))
    assert lake.read(partition).num_rows == 6


def test_a_writer_that_adds_nothing_is_an_error(partition: lake.Partition) -> None:
    """A writer that adds no table raises ValueError."""
    with pytest.raises(ValueError, match="nothing was added"):
        write_batches(partition, "v1")
    assert lake.find_manifest(partition) is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda partition: partition.manifest.unlink(),
        lambda partition: partition.manifest.write_text("{"),
        lambda partition: partition.manifest.write_text("{}"),
        lambda partition: partition.parquet.unlink(),
        lambda partition: partition.parquet.write_bytes(partition.parquet.read_bytes()[:-1]),
    ],
    ids=["no manifest", "half a manifest", "another manifest", "no rows", "half the rows"],
)
def test_a_damaged_partition_is_incomplete_and_written_again(
    partition: lake.Partition, harm: Callable[[lake.Partition], object]
) -> None:
    """A partition with a missing or damaged file is incomplete and can be written again."""
    write(partition)
    harm(partition)
    assert lake.find_manifest(partition) is None
    with pytest.raises(DataProcessingException, match="is not a complete partition: run its collection again"):
        lake.read(partition)
    write(partition)
    assert lake.read(partition).equals(ROWS)


@pytest.mark.parametrize("window", ["America/New_York", "..", ".", "a b", "x%2Fy", ".tmp-1"])
def test_a_window_of_any_name_is_one_directory(tmp_path: Path, window: str) -> None:
    """Each window is one directory, whatever characters its name has."""
    partition = lake.Partition(lake=tmp_path, layer="raw", tool="t", table="a", window=window)
    write(partition)
    assert partition.directory.parent == tmp_path / "raw/t/a"
    assert lake.list_partitions(tmp_path, "raw", "t", "a") == [partition]


KILLED = """
import os, signal, sys
import pyarrow as pa
from pathlib import Path
from tasks import lake

stage, root = sys.argv[1], Path(sys.argv[2])
partition = lake.Partition(lake=root, layer="raw", tool="flights", table="weather", window="2013-01")
rename, renames = Path.rename, []

def dying_rename(self, target):
    renames.append(target)
    if stage == f"before rename {len(renames)}":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = dying_rename
with lake.writing(partition, fingerprint="v2") as writer:
    writer.add(pa.table({"a": [9]}))
    if stage == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("stage", ["writing", "before rename 1", "before rename 2"])
def test_a_writer_killed_at_any_point_leaves_no_half_partition(partition: lake.Partition, stage: str) -> None:
    """A killed writer leaves the old partition or none; the next writer cleans up and succeeds."""
    write(partition)
    died = subprocess.run([sys.executable, "-c", KILLED, stage, str(partition.lake)], cwd=ROOT, timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert any(name.startswith(".tmp-") for name in files(partition))
    if lake.find_manifest(partition) is not None:
        assert lake.read(partition).equals(ROWS)
    write(partition, pa.table({"a": [5]}), "v3")
    assert lake.read(partition)["a"].to_pylist() == [5]
    assert files(partition) == {"part.parquet", "manifest.json", ".lock"}


WRITER = """
import sys
import pyarrow as pa
from pathlib import Path
from tasks import lake

number, root = int(sys.argv[1]), Path(sys.argv[2])
partition = lake.Partition(lake=root, layer="raw", tool="flights", table="weather", window="2013-01")
for _ in range(30):
    with lake.writing(partition, fingerprint=f"v{number}") as writer:
        writer.add(pa.table({"a": [number] * (number + 1)}))
    rows = lake.read(partition)["a"].to_pylist()
    assert len(rows) == rows[0] + 1, rows
"""


def test_processes_that_write_the_same_partition_take_turns(partition: lake.Partition) -> None:
    """Processes that write the same partition never mix their rows."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(number), str(partition.lake)], cwd=ROOT)
        for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    rows = lake.read(partition)["a"].to_pylist()
    assert rows == [rows[0]] * (rows[0] + 1)


def test_threads_that_write_the_same_partition_take_turns(partition: lake.Partition) -> None:
    """Threads that write the same partition never mix their rows."""

    def keep_writing(number: int) -> None:
        for _ in range(20):
            write(partition, pa.table({"a": [number]}), f"v{number}")

    writers = [threading.Thread(target=keep_writing, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    manifest = lake.find_manifest(partition)
    assert manifest is not None
    assert manifest.fingerprint == f"v{lake.read(partition)['a'].to_pylist()[0]}"


def test_a_reader_sees_one_version_to_the_end(partition: lake.Partition) -> None:
    """A writer waits until a reader of the same partition is done."""
    write(partition)
    with lake.reading(partition) as file:
        writer = threading.Thread(target=write, args=(partition, pa.table({"a": [9]}), "v2"))
        writer.start()
        writer.join(0.05)
        assert writer.is_alive()
        assert file.read().equals(ROWS)
    writer.join()
    assert lake.read(partition)["a"].to_pylist() == [9]


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    """A second write replaces the file and leaves no temporary file."""
    path = tmp_path / "reports" / "a.png"
    lake.write_file(path, b"one")
    lake.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.png"]
