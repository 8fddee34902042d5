"""What is stored of a table: its files, and what each says of itself in its footer: its window, whence it is, its rows.

Rows and what is known of them are one file, so that both are published by one rename.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.disk import explained, writing
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.lake.layout import LakeSettings

MAX_RANGES = 1000
"""Ranges, and deliveries of its rows, that a window remembers. Only a run that was overtaken by so many others would
not be seen as too old, and of two old deliveries that come again the older one could win."""

_KEY = b"executor_adapter.window"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A part of a window that was asked for at one time, by its cursor column."""

    since: str | None = None
    """The first value; None: from the beginning."""
    until: str | None = None
    """The first value after it; None: all that there was."""
    collected_at: str
    """When the source was asked, in ISO 8601, UTC."""
    origin: str = ""
    """What was asked for: deliveries of several origins are merged into one window."""


class Delivered(NamedTuple):
    """Rows of a window, one after another, for which the source was asked at the same time."""

    collected_at: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEntry:
    """Describes a window in the lake."""

    window: str
    rows: int
    fingerprint: str
    """Identifies the input of the rows: the same fingerprint gives the same rows."""
    created_at: str = ""
    """When it was written for the first time, in ISO 8601, UTC; what was merged into it before it was removed is not in
    it."""
    watermark: str | None = None
    """The highest value of the cursor column among its rows; None without one."""
    ranges: tuple[Range, ...] = ()
    """What was asked for and when, without those that later ones replaced."""
    delivered: tuple[Delivered, ...] = ()
    """Whence the rows are, in their order."""
    dropped: int = 0
    """Rows of the input that steps left out, and that are in no table."""
    merged: int = 0
    """Rows of the input that steps made other rows of; negative where there are more of these."""
    vanished_at: str | None = None
    """When the source was seen to have the window no longer; None: it has it."""

    @property
    def collected_at(self) -> str:
        """When the source was last asked for a part of the window."""
        return max(each.collected_at for each in self.ranges)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """Return the entry that `asdict` made a dict of."""
        ranges = tuple(Range(**each) for each in found["ranges"])
        return cls(**found | {"ranges": ranges, "delivered": tuple(Delivered(*each) for each in found["delivered"])})


def footer_of(entry: WindowEntry) -> dict[bytes, bytes]:
    """Return what is written into the footer."""
    return {_KEY: json.dumps(asdict(entry)).encode()}


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file of the lake; the checksums of its pages are verified where they are read.

    A writer replaces the file by a new one, so what is open stays as it was.

    Raises:
        DataProcessingException: DATA_ERROR, the file is damaged.
    """
    with reading(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what is wrong with a file while it is read in the block; what the system refuses is not the file's fault.

    Raises:
        DataProcessingException: DATA_ERROR, the file is damaged.
    """
    try:
        with explained(path):
            yield
    except pa.ArrowException as error:
        raise damaged(path, error) from error
    except OSError as error:
        # Arrow raises some of its own errors as OSError, without a number of the system.
        if error.errno is not None:
            raise
        raise damaged(path, error) from error


def entry_of(file: pq.ParquetFile, path: Path) -> WindowEntry:
    """Return the window in an open file.

    Raises:
        DataProcessingException: DATA_ERROR, it is not a file of the lake.
    """
    try:
        entry = WindowEntry.from_dict(json.loads(file.metadata.metadata[_KEY]))
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(path, error) from error
    if entry.rows != file.metadata.num_rows:
        raise damaged(path, "the number of rows differs")
    return entry


def damaged(path: Path, why: object) -> DataProcessingException:
    """Return the error of a file that is not as it was written."""
    return rows_error(f"{path} is damaged: {why}: remove it, and process its landing again", "lake")


class Stored(NamedTuple):
    """A window in the lake: what is known of it, and its file."""

    entry: WindowEntry
    path: Path


class StoredTable:
    """Reads the files of a table."""

    def __init__(self, table: LakeSettings) -> None:
        self.table = table

    def entries(self) -> list[Stored]:
        """Return the windows, in the order of the names of their folders.

        The index has what the footers say, so that a footer is opened once after its file was written.
        """
        index = self.table.state / "index.json"
        known: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):
            known = json.loads(index.read_bytes())
        found: dict[str, Any] = {}
        stored = []
        for path in self.table.files():
            name, state = path.parent.name, os.stat(path)
            version = [state.st_ino, state.st_mtime_ns, state.st_size]
            before = known.get(name)
            if before is None or before[0] != version:
                before = [version, asdict(self.read(path).entry)]
            found[name] = before
            stored.append(Stored(WindowEntry.from_dict(before[1]), path))
        if found != known:
            with writing(index, sync=False) as file:
                file.write(json.dumps(found).encode())
        return stored

    def read(self, path: Path) -> Stored:
        """Return the window in a file."""
        with opened(path) as file:
            return Stored(entry_of(file, path), path)

    def find(self, window: str) -> Stored | None:
        """Return a window; None where the table has none of that name."""
        path = self.table.file_of(window)
        return self.read(path) if path.exists() else None

    def get(self, window: str) -> Stored:
        """Return a window.

        Raises:
            DataProcessingException: DATA_ERROR, the table has none of that name.
        """
        if (found := self.find(window)) is None:
            raise rows_error(f"{self.table} has no window {window!r}: collect it first", "lake")
        return found

    def schema(self) -> pa.Schema | None:
        """Return the columns of the table, which all its files have; None where it has no file."""
        path = self.table.any_file()
        if path is None:
            return None
        with opened(path) as file:
            return file.schema_arrow.remove_metadata()


def rows_of(file: pq.ParquetFile, path: Path, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open file; at least one batch, which may have no rows."""
    batches, empty = file.iter_batches(batch_rows), True
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            break
        empty = False
        yield batch.replace_schema_metadata()
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow.remove_metadata())
