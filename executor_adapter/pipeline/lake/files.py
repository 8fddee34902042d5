"""Writes the Parquet files of the lake: in row groups of even size, with checksums, and complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from executor_adapter.pipeline.disk import explained, sync_folder
from executor_adapter.pipeline.lake.evolution import fitted
from executor_adapter.pipeline.lake.footers import WindowEntry, footer_of
from executor_adapter.pipeline.lake.merging import check_cursor, text_of

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
        entry = entry.renamed(rows=self.rows, watermark=watermark)
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
