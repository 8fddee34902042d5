"""Writes the Parquet files of the lake: in row groups of even size, with checksums, and complete or not at all.

Files are written anew from others: one window, or all of a table at once. Readers that list the folder before that and
open files after it may find one gone, which is an error they see; none sees rows twice or too few.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from executor_adapter.pipeline.disk import TEMPORARY, explained, sync_folder
from executor_adapter.pipeline.lake.evolution import fitted
from executor_adapter.pipeline.lake.layout import LakeSettings
from executor_adapter.pipeline.lake.merging import check_cursor, text_of
from executor_adapter.pipeline.lake.stored import Stored, StoredTable, WindowEntry, footer_of, opened, rows_of

ROW_GROUP = 250_000
"""Rows of a row group; those of several batches are written together."""


class FileWriter:
    """Writes the file of one window."""

    def __init__(self, path: Path, schema: pa.Schema, cursor: str | None = None) -> None:
        self.path = path
        self.schema = schema
        self._cursor = cursor
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.waiting = 0
        """Rows that are in memory."""
        self._highest: pa.Scalar | None = None
        self.rows = 0

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        rows = fitted(rows, self.schema)
        self.rows += rows.num_rows
        self._note_highest(rows)
        self._waiting.append(rows)
        self.waiting += rows.num_rows
        if self.waiting >= ROW_GROUP:
            self.flush()

    def _note_highest(self, rows: pa.Table) -> None:
        if self._cursor is None or self._cursor not in rows.column_names:
            return
        highest = pc.max(rows[self._cursor])
        if highest.is_valid:
            check_cursor(highest.as_py(), self._cursor)
        if highest.is_valid and (self._highest is None or pc.greater(highest, self._highest).as_py()):
            self._highest = highest

    def close(self, entry: WindowEntry) -> WindowEntry:
        """Write the rest and the footer to the disk; return the entry with the rows and the watermark of the file."""
        self.flush()
        watermark = None if self._highest is None else text_of(self._highest.as_py())
        entry = replace(entry, rows=self.rows, watermark=watermark)
        writer = self._opened()
        writer.add_key_value_metadata(footer_of(entry))
        with explained(self.path):
            writer.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return entry

    def _opened(self) -> pq.ParquetWriter:
        # Not before there is something to write: a landing may have thousands of windows.
        if self._writer is None:
            with explained(self.path):
                self._writer = pq.ParquetWriter(self.path, self.schema, compression="zstd", write_page_checksum=True)
        return self._writer

    def discard(self) -> None:
        """Release the file without completing it."""
        if self._writer is not None and self._writer.is_open:
            self._writer.close()

    def flush(self) -> None:
        """Write the rows that wait for their row group to be full."""
        if not self._waiting:
            return
        with explained(self.path):
            self._opened().write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=ROW_GROUP)
            self._waiting, self.waiting = [], 0


def publish(temporary: Path, target: Path) -> None:
    """Put a whole file in its place; readers see the old one or the new one, also after a crash of the machine."""
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(target)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)


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
    table, folder = stored.table, space / "table"
    with explained(folder):
        for each in stored.entries():
            path = folder / each.path.relative_to(table.folder)
            path.parent.mkdir(parents=True)
            copy_window(each, FileWriter(path, schema, cursor), each.entry)
            sync_folder(path.parent)
        sync_folder(folder)
        # From here on it is the table: whoever takes the lock next would put it in its place.
        folder.rename(_new(table))
        sync_folder(table.state)
    recover(table)


def needs_recovery(table: LakeSettings) -> bool:
    """Return whether a process died while it replaced the table."""
    return _new(table).exists()


def recover(table: LakeSettings) -> None:
    """Finish what a process began that died, or remove what it made of it. The caller holds the table's lock alone."""
    new, old = _new(table), table.state / "old"
    with explained(table.folder):
        if new.exists():
            if table.folder.exists():
                table.folder.rename(old)
            new.rename(table.folder)
            sync_folder(table.folder.parent)
            sync_folder(table.state)
        shutil.rmtree(old, ignore_errors=True)
        for leftover in table.state.glob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)


def _new(table: LakeSettings) -> Path:
    return table.state / "new"
