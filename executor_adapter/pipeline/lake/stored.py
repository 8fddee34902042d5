"""What is in a table's folder now, read by whoever holds its lock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.pipeline.lake.footers import WindowEntry, entries_of, opened, plain_schema
from executor_adapter.pipeline.lake.layout import Place


class Stored(NamedTuple):
    """A window in the lake: what is known of it, where its rows begin in its file, and the file."""

    entry: WindowEntry
    start: int
    path: Path


class StoredTable:
    """Reads the files of a table. Several windows may share a file, where they were compacted."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def entries(self) -> Iterator[Stored]:
        """Yield the windows, in the order of their files and of their rows."""
        for path in self.place.files():
            yield from self.in_file(path)

    def in_file(self, path: Path) -> list[Stored]:
        """Return the windows in one file; none where there is no file."""
        if not path.exists():
            return []
        with opened(path) as file:
            entries = entries_of(file, path)
        found, start = [], 0
        for entry in entries:
            found.append(Stored(entry, start, path))
            start += entry.rows
        return found

    def find(self, window: str) -> Stored | None:
        """Return a window; None where the table has none of that name."""
        # A compacted file has windows whose names begin with its own: 2013-01-05 is in 2013-01, or in 2013.
        for end in range(len(window), -1, -1):
            for found in self.in_file(self.place.file_of(window[:end])):
                if found.entry.window == window:
                    return found
        return None

    def schema(self) -> pa.Schema | None:
        """Return the columns of the table, which all its files have; None where it has no file."""
        path = self.place.any_file()
        if path is None:
            return None
        with opened(path) as file:
            return plain_schema(file)


def rows_of(file: pq.ParquetFile, start: int, count: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield `count` rows of an open file from row `start` on; at least one batch, which may have no rows."""
    groups: list[int] = []
    offset = position = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if position < start + count and start < position + rows:
            if not groups:
                offset = position
            groups.append(group)
        position += rows
    empty = True
    for batch in file.iter_batches(batch_rows, row_groups=groups) if groups else ():
        first, last = max(start - offset, 0), min(start + count - offset, batch.num_rows)
        offset += batch.num_rows
        if last > first:
            empty = False
            yield batch.slice(first, last - first).replace_schema_metadata()
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=plain_schema(file))
