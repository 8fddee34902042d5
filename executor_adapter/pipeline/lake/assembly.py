"""Writes files of the lake anew from other files of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from executor_adapter.pipeline.lake.files import ROW_GROUP, FileWriter
from executor_adapter.pipeline.lake.footers import WindowEntry, opened
from executor_adapter.pipeline.lake.layout import window_of
from executor_adapter.pipeline.lake.rebuild import rebuild
from executor_adapter.pipeline.lake.stored import Stored, StoredTable, rows_of

Change = Callable[[pa.Table], pa.Table]


def rows_in(stored: Stored) -> Iterator[pa.Table]:
    """Yield the rows of a window, a row group at a time."""
    with opened(stored.path) as file:
        for batch in rows_of(file, stored.path, ROW_GROUP):
            yield pa.Table.from_batches([batch])


def copy_window(stored: Stored, file: FileWriter, entry: WindowEntry, change: Change | None = None) -> None:
    """Write the rows of a window, each table of them changed by `change`, and close the file."""
    try:
        for rows in rows_in(stored):
            file.add(rows if change is None else change(rows))
        file.close(entry)
    finally:
        file.discard()


def rewrite_all(stored: StoredTable, schema: pa.Schema, space: Path, cursor: str | None) -> None:
    """Give all files of a table other columns, at once."""
    files = {}
    for number, each in enumerate(stored.entries()):
        path = files[window_of(each.path)] = space / f"{number}.parquet"
        copy_window(each, FileWriter(path, schema, cursor), each.entry)
    rebuild(stored.place, files)
