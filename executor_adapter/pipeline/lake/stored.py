"""What is in a table's folder now, read by whoever holds its lock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.lake.footers import WindowEntry, entry_of, opened, plain_schema, reading
from executor_adapter.pipeline.lake.layout import Place


class Stored(NamedTuple):
    """A window in the lake: what is known of it, and its file."""

    entry: WindowEntry
    path: Path


class StoredTable:
    """Reads the files of a table."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def entries(self) -> list[Stored]:
        """Return the windows, in the order of the names of their folders.

        The index has what the footers say, so that a footer is opened once after its file was written.
        """
        index = self.place.state / "index.json"
        known: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):
            known = json.loads(index.read_bytes())
        found: dict[str, Any] = {}
        stored = []
        for path in self.place.files():
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
        path = self.place.file_of(window)
        return self.read(path) if path.exists() else None

    def get(self, window: str) -> Stored:
        """Return a window.

        Raises:
            DataProcessingException: DATA_ERROR, the table has none of that name.
        """
        if (found := self.find(window)) is None:
            said = f"{self.place} has no window {window!r}: collect it first"
            raise DataProcessingException(said, error_code="DATA_ERROR")
        return found

    def schema(self) -> pa.Schema | None:
        """Return the columns of the table, which all its files have; None where it has no file."""
        path = self.place.any_file()
        if path is None:
            return None
        with opened(path) as file:
            return plain_schema(file)


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
        yield pa.RecordBatch.from_pylist([], schema=plain_schema(file))
