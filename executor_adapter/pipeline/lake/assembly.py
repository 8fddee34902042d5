"""Puts files of the lake together of the windows of other files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from executor_adapter.pipeline.lake.files import ROW_GROUP, FileWriter
from executor_adapter.pipeline.lake.footers import opened
from executor_adapter.pipeline.lake.layout import window_of
from executor_adapter.pipeline.lake.rebuild import rebuild
from executor_adapter.pipeline.lake.stored import Stored, StoredTable, rows_of

Change = Callable[[pa.Table], pa.Table]


def rows_in(stored: Stored) -> Iterator[pa.Table]:
    """Yield the rows of a window, a row group at a time."""
    with opened(stored.path) as file:
        for batch in rows_of(file, stored.start, stored.entry.rows, ROW_GROUP):
            yield pa.Table.from_batches([batch])


def copy_window(stored: Stored, file: FileWriter, change: Change | None = None) -> None:
    """Append a window to a file, its rows changed by `change`."""
    for rows in rows_in(stored):
        file.add(rows if change is None else change(rows))
    file.end_window(stored.entry)


def assemble(path: Path, windows: Iterable[Stored], schema: pa.Schema, cursor: str | None) -> Path:
    """Write a file with these windows, in the order of their names; return its path."""
    file = FileWriter(path, schema, cursor)
    try:
        for each in sorted(windows, key=lambda each: each.entry.window):
            copy_window(each, file)
        file.close()
    finally:
        file.discard()
    return path


def rewrite_all(stored: StoredTable, schema: pa.Schema, space: Path, cursor: str | None) -> None:
    """Give all files of a table other columns, at once."""
    files = {
        window_of(path): assemble(space / f"{number}.parquet", stored.in_file(path), schema, cursor)
        for number, path in enumerate(stored.place.files())
    }
    rebuild(stored.place, files)
