"""Writes files of a table anew from its own: one window, or all of them at once.

Readers that list the folder before all files are replaced and open files after it may find one gone, which is an error
they see; none sees rows twice or too few.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from executor_adapter.pipeline.disk import TEMPORARY, explained, sync_folder
from executor_adapter.pipeline.lake.files import ROW_GROUP, FileWriter
from executor_adapter.pipeline.lake.footers import WindowEntry, opened
from executor_adapter.pipeline.lake.layout import Place
from executor_adapter.pipeline.lake.stored import Stored, StoredTable, rows_of


def rows_in(stored: Stored) -> Iterator[pa.Table]:
    """Yield the rows of a window, a row group at a time."""
    with opened(stored.path) as file:
        for batch in rows_of(file, stored.path, ROW_GROUP):
            yield pa.Table.from_batches([batch])


def copy_window(
    stored: Stored, file: FileWriter, entry: WindowEntry, change: Callable[[pa.Table], pa.Table] = lambda rows: rows
) -> None:
    """Write the rows of a window, each table of them changed by `change`, and close the file."""
    try:
        for rows in rows_in(stored):
            file.add(change(rows))
        file.close(entry)
    finally:
        file.discard()


def rewrite_all(stored: StoredTable, schema: pa.Schema, space: Path, cursor: str | None) -> None:
    """Give all files of a table other columns, at once. The caller holds the table's lock alone."""
    place, folder = stored.place, space / "table"
    with explained(folder):
        for each in stored.entries():
            path = folder / each.path.relative_to(place.folder)
            path.parent.mkdir(parents=True)
            copy_window(each, FileWriter(path, schema, cursor), each.entry)
            sync_folder(path.parent)
        sync_folder(folder)
        # From here on it is the table: whoever takes the lock next would put it in its place.
        folder.rename(_new(place))
        sync_folder(place.state)
    recover(place)


def needs_recovery(place: Place) -> bool:
    """Return whether a process died while it replaced the table."""
    return _new(place).exists()


def recover(place: Place) -> None:
    """Finish what a process began that died, or remove what it made of it. The caller holds the table's lock alone."""
    new, old = _new(place), place.state / "old"
    with explained(place.folder):
        if new.exists():
            if place.folder.exists():
                place.folder.rename(old)
            new.rename(place.folder)
            sync_folder(place.folder.parent)
            sync_folder(place.state)
        shutil.rmtree(old, ignore_errors=True)
        for leftover in place.state.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)


def _new(place: Place) -> Path:
    return place.state / "new"
