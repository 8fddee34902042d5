"""The lake: Parquet partitions by tool, table and window, written whole or not at all.

    <lake>/<layer>/<tool>/<table>/<window>/part.parquet     the rows
                                           manifest.json    how many, of what, and the checksum
                                           .lock            held by whoever writes

A partition is complete when its manifest is there and the checksum in it is that of the Parquet file. Each of the
two is written under a temporary name, synced and renamed, the manifest last: whatever dies in between leaves the old
partition, or one that is not complete and is written again. A second writer of the same partition waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    """The rows of one window of one table of one tool, at one stage of their way. Picklable."""

    lake: Path
    layer: Layer
    tool: str
    table: str
    window: str

    @property
    def directory(self) -> Path:
        # A window may be any value of a column: "America/New_York" must not become two directories, nor ".." one up.
        window = quote(self.window, safe="").replace(".", "%2E")
        return self.lake / self.layer / self.tool / self.table / window

    @property
    def parquet(self) -> Path:
        return self.directory / "part.parquet"

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.json"

    def at(self, layer: Layer) -> Self:
        """The same window at another stage."""
        return replace(self, layer=layer)

    def __str__(self) -> str:
        return f"{self.tool}/{self.table} {self.window}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a complete partition says of itself."""

    rows: int
    fingerprint: str
    """Of what the rows were made: the same fingerprint would give the same rows."""
    checksum: str
    """SHA-256 of the Parquet file."""
    written_at: str


def partitions(lake: Path, layer: Layer, tool: str, table: str) -> list[Partition]:
    """The partitions that are there, complete or not, by window."""
    found = sorted(path.parent.name for path in (lake / layer / tool / table).glob("*/part.parquet"))
    return [Partition(lake=lake, layer=layer, tool=tool, table=table, window=unquote(name)) for name in found]


def complete(partition: Partition, fingerprint: str | None = None) -> Manifest | None:
    """The partition's manifest if it is complete, and made of `fingerprint` where one is given; else None."""
    if not partition.manifest.exists():
        return None
    with _locked(partition, fcntl.LOCK_SH):
        manifest = _manifest_of(partition)
    return manifest if manifest is not None and fingerprint in (None, manifest.fingerprint) else None


def read(partition: Partition) -> pa.Table:
    """The rows of a complete partition.

    Raises:
        DataProcessingException: DATA_ERROR, it is not complete.
    """
    with reading(partition) as file:
        return file.read()


@contextmanager
def reading(partition: Partition) -> Iterator[pq.ParquetFile]:
    """The Parquet file of a complete partition, to be read in batches; no writer replaces it meanwhile.

    Raises:
        DataProcessingException: DATA_ERROR, it is not complete.
    """
    if not partition.manifest.exists():
        raise incomplete(partition)
    with _locked(partition, fcntl.LOCK_SH):
        if _manifest_of(partition) is None:
            raise incomplete(partition)
        with pq.ParquetFile(partition.parquet) as file:
            yield file


@contextmanager
def writing(partition: Partition, *, fingerprint: str) -> Iterator[Writer]:
    """Write the partition anew, by `Writer.add`; it is complete when the block ends, as it was when that raises."""
    partition.directory.mkdir(parents=True, exist_ok=True)
    with _locked(partition, fcntl.LOCK_EX):
        _remove_temporaries(partition.directory)
        writer = Writer(partition)
        try:
            yield writer
            rows = writer.close()
            _publish(partition, writer.temporary, rows, fingerprint)
        finally:
            writer.abandon()


class Writer:
    """Rows on their way into a partition, batch by batch; the first batch sets the columns and their types."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.temporary = partition.directory / f"{_TEMPORARY}{os.getpid()}.parquet"
        self._file: pq.ParquetWriter | None = None
        self._rows = 0

    def previous(self) -> pa.Table | None:
        """The rows that are there now, to be merged with; None where there are none or they are not complete."""
        return pq.read_table(self._partition.parquet) if _manifest_of(self._partition) else None

    def add(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            DataProcessingException: DATA_ERROR, the columns are not those of the first batch.
        """
        if self._file is None:
            self._file = pq.ParquetWriter(self.temporary, table.schema, compression="zstd")
        try:
            self._file.write_table(table.cast(self._file.schema))
        except (pa.ArrowInvalid, ValueError) as error:
            raise DataProcessingException(f"{self._partition}: {error}", error_code="DATA_ERROR") from error
        self._rows += table.num_rows

    def close(self) -> int:
        """Write what is left to the disk; how many rows there are."""
        if self._file is None:
            raise ValueError(f"{self._partition}: nothing was added: add a table, be it one without rows")
        self._file.close()
        _sync(self.temporary)
        return self._rows

    def abandon(self) -> None:
        """Leave nothing behind; harmless when the partition is written."""
        if self._file is not None and self._file.is_open:
            self._file.close()
        self.temporary.unlink(missing_ok=True)


def count(partition: Partition) -> int:
    """How many rows the Parquet file holds, by its own count and not by the manifest's; 0 where there is none."""
    return pq.read_metadata(partition.parquet).num_rows if partition.parquet.exists() else 0


def write_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _publish(partition: Partition, temporary: Path, rows: int, fingerprint: str) -> None:
    manifest = Manifest(
        rows=rows,
        fingerprint=fingerprint,
        checksum=_checksum(temporary),
        written_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    temporary.rename(partition.parquet)
    write_file(partition.manifest, json.dumps(asdict(manifest), indent=1).encode())


def _manifest_of(partition: Partition) -> Manifest | None:
    try:
        manifest = Manifest(**json.loads(partition.manifest.read_bytes()))
        return manifest if _checksum(partition.parquet) == manifest.checksum else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def incomplete(partition: Partition) -> DataProcessingException:
    """The error of whoever needs a partition that is not complete."""
    return DataProcessingException(
        f"{partition}: {partition.directory} is not a complete partition: run its collection again",
        error_code="DATA_ERROR",
        partition=str(partition),
    )


@contextmanager
def _locked(partition: Partition, mode: int) -> Iterator[None]:
    # The kernel lets go of a flock when its holder dies, however it dies; one per open file, so threads exclude too.
    with (partition.directory / ".lock").open("a") as lock:
        fcntl.flock(lock, mode)
        yield


def _remove_temporaries(directory: Path) -> None:
    # Only the holder of the lock makes any, so those found are of a writer that died.
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
