"""The lake: Parquet partitions by tool, table and window. Each is written completely or not at all.

    <lake>/<layer>/<tool>/<table>/<window>/part.parquet     the rows
                                           manifest.json    the number of rows, their fingerprint, the checksum
                                           .lock            held by the process that writes

A partition is complete when its manifest exists and holds the checksum of the Parquet file. Both files are written
under a temporary name, synced and renamed, the manifest last. A process that dies in between leaves the old partition,
or an incomplete one that is written again. A second writer of the same partition waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataProcessingException

Layer = Literal["raw", "processed", "rejects", "aggregates", "reports"]

_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Identifies the rows of one window of a tool's table in one layer of the lake. Picklable."""

    lake: Path
    layer: Layer
    tool: str
    table: str
    window: str

    @property
    def directory(self) -> Path:
        # A window can be any value of a column: "America/New_York" must not become two directories, nor ".." one up.
        window = quote(self.window, safe="").replace(".", "%2E")
        return self.lake / self.layer / self.tool / self.table / window

    @property
    def parquet(self) -> Path:
        return self.directory / "part.parquet"

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    def in_layer(self, layer: Layer) -> Self:
        """Return the same window in another layer."""
        return replace(self, layer=layer)

    def __str__(self) -> str:
        return f"{self.tool}/{self.table} {self.window}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Describes a complete partition."""

    rows: int
    fingerprint: str
    """Identifies the input of the rows: the same fingerprint gives the same rows."""
    checksum: str
    """SHA-256 of the Parquet file."""
    written_at: str


def list_partitions(lake: Path, layer: Layer, tool: str, table: str) -> list[Partition]:
    """Return the existing partitions, complete or not, sorted by window."""
    found = sorted(path.parent.name for path in (lake / layer / tool / table).glob("*/part.parquet"))
    return [Partition(lake=lake, layer=layer, tool=tool, table=table, window=unquote(name)) for name in found]


def find_manifest(partition: Partition, fingerprint: str | None = None) -> Manifest | None:
    """Return the manifest of a complete partition, else None; a given `fingerprint` must match too."""
    if not partition.manifest.exists():
        return None
    with _locked(partition, fcntl.LOCK_SH):
        manifest = _read_manifest(partition)
    return manifest if manifest is not None and fingerprint in (None, manifest.fingerprint) else None


def read(partition: Partition) -> pa.Table:
    """Return the rows of a complete partition.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is not complete.
    """
    with reading(partition) as file:
        return file.read()


@contextmanager
def reading(partition: Partition) -> Iterator[pq.ParquetFile]:
    """Open the Parquet file of a complete partition, to read it in batches; writers wait until the block ends.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is not complete.
    """
    if not partition.manifest.exists():
        raise incomplete_error(partition)
    with _locked(partition, fcntl.LOCK_SH):
        if _read_manifest(partition) is None:
            raise incomplete_error(partition)
        with pq.ParquetFile(partition.parquet) as file:
            yield file


@contextmanager
def writing(partition: Partition, *, fingerprint: str) -> Iterator[Writer]:
    """Replace the partition by the rows given to `Writer.add`. If the block raises, the old partition stays."""
    partition.directory.mkdir(parents=True, exist_ok=True)
    with _locked(partition, fcntl.LOCK_EX):
        _remove_temporaries(partition.directory)
        writer = Writer(partition)
        try:
            yield writer
            rows = writer.close()
            _publish(partition, writer.temporary, rows, fingerprint)
        finally:
            writer.discard()


class Writer:
    """Writes the rows of a partition in batches; the first batch sets the columns and their types."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.temporary = partition.directory / f"{_TEMPORARY}{os.getpid()}.parquet"
        self._file: pq.ParquetWriter | None = None
        self._rows = 0

    def previous(self) -> pa.Table | None:
        """Return the current rows of the partition, to merge with; None if the partition is missing or incomplete."""
        return pq.read_table(self._partition.parquet) if _read_manifest(self._partition) else None

    def add(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            DataProcessingException: DATA_ERROR, the columns differ from those of the first batch.
        """
        if self._file is None:
            self._file = pq.ParquetWriter(self.temporary, table.schema, compression="zstd")
        try:
            self._file.write_table(table.cast(self._file.schema))
        except (pa.ArrowInvalid, ValueError) as error:
            raise DataProcessingException(f"{self._partition}: {error}", error_code="DATA_ERROR") from error
        self._rows += table.num_rows

    def close(self) -> int:
        """Write the rest to the disk and return the number of rows."""
        if self._file is None:
            raise ValueError(f"{self._partition}: nothing was added: add a table, even one without rows")
        self._file.close()
        _sync(self.temporary)
        return self._rows

    def discard(self) -> None:
        """Remove the temporary file; does nothing once the partition is written."""
        if self._file is not None and self._file.is_open:
            self._file.close()
        self.temporary.unlink(missing_ok=True)


def count_rows(partition: Partition) -> int:
    """Return the number of rows that the Parquet file itself states, not the manifest; 0 if there is no file."""
    return pq.read_metadata(partition.parquet).num_rows if partition.parquet.exists() else 0


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def remove_leftovers(root: Path, *, before: float) -> int:
    """Remove the temporary files below `root` that were last written before a time; return how many.

    `before` is in seconds since the epoch. A writer that lives is at its file all the time, so old ones have no writer.
    """
    removed = 0
    for stale in root.rglob(f"{_TEMPORARY}*"):
        with suppress(FileNotFoundError):
            if stale.stat().st_mtime < before:
                stale.unlink()
                removed += 1
    return removed


def _publish(partition: Partition, temporary: Path, rows: int, fingerprint: str) -> None:
    manifest = Manifest(
        rows=rows,
        fingerprint=fingerprint,
        checksum=_checksum(temporary),
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    temporary.rename(partition.parquet)
    write_file(partition.manifest, json.dumps(asdict(manifest), indent=1).encode())


def _read_manifest(partition: Partition) -> Manifest | None:
    try:
        manifest = Manifest(**json.loads(partition.manifest.read_bytes()))
        return manifest if _checksum(partition.parquet) == manifest.checksum else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def incomplete_error(partition: Partition) -> DataProcessingException:
    """Return the error to raise when a partition that is needed is not complete."""
    return DataProcessingException(
        f"{partition}: {partition.directory} is not a complete partition: run its collection again",
        error_code="DATA_ERROR",
        partition=str(partition),
    )


@contextmanager
def _locked(partition: Partition, mode: int) -> Iterator[None]:
    # The kernel releases a flock when its holder dies in any way. Each call opens the file, so threads wait too.
    with (partition.directory / ".lock").open("a") as lock:
        fcntl.flock(lock, mode)
        yield


def _remove_temporaries(directory: Path) -> None:
    # Only the holder of the lock creates them, so a file found here was left by a writer that died.
    for stale in directory.glob(f"{_TEMPORARY}*"):
        stale.unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
