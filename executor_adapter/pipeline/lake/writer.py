"""Writes windows: their rows as they come, and, when they are all there, each window with what it had before.

Files have row groups of even size and checksums, and are complete or not there at all. Where the columns of a table
change, all of its windows are written anew, one after another, before the rows come that need it. A process that is
killed while it puts them in their places leaves the rest to the next one that looks at the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.disk import explained, publish, writing
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake import merging
from executor_adapter.pipeline.lake.evolution import check_names, evolved, fitted, plain
from executor_adapter.pipeline.lake.stored import (
    ROW_GROUP,
    WINDOW,
    Range,
    StoredTable,
    WindowEntry,
    footer_of,
    rows_in,
)


class FileWriter:
    """Writes the file of one window."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.waiting = 0
        """Rows that are in memory."""
        self.rows = 0

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        rows = fitted(rows, self.schema)
        self.rows += rows.num_rows
        self._waiting.append(rows)
        self.waiting += rows.num_rows
        if self.waiting >= ROW_GROUP:
            self.flush()

    def close(self, entry: WindowEntry) -> WindowEntry:
        """Write the rest and the footer to the disk; return the entry with the rows of the file."""
        self.flush()
        entry = replace(entry, rows=self.rows)
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
        if self._waiting:
            with explained(self.path):
                self._opened().write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=ROW_GROUP)
                self._waiting, self.waiting = [], 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What has become of the rows that were given to a writer."""

    status: Literal["written", "overtaken"]
    """`overtaken`: a newer answer was in the lake already, and stays."""
    rows: int
    """Rows of the window now."""
    added: int = 0
    """Rows that the window did not have."""
    replaced: int = 0
    """Older rows in whose place a newer one came."""


class Writer:
    """Takes the rows of one window; see `LakeTable.writing`."""

    def __init__(self, table: StoredTable, entry: WindowEntry, asked: Range, space: Path) -> None:
        self._table = table
        self._entry = entry
        self._asked = asked
        self._space = space
        self._parts: list[FileWriter] = []
        self._keys: list[pa.Array] = []
        self._given = 0
        self._highest: Any = None
        self._result: Written | None = None
        self.dropped = self.merged = 0
        """Rows of the input that are left out on purpose, or became others: see `WindowEntry`."""

    @property
    def result(self) -> Written:
        """What has become of the rows.

        Raises:
            RuntimeError: the block of `LakeTable.writing` has not ended, or has failed.
        """
        if self._result is None:
            raise RuntimeError(f"{self._table} {self._entry.window}: the rows are written when the block ends")
        return self._result

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows. Batches may differ in their columns; one without rows only tells its columns.

        Raises:
            DataProcessingException: DATA_ERROR or CONFIGURATION_ERROR, see `LakeTable.writing`.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        check_names(table.schema, (WINDOW, *self._table.extra_columns.names))
        table = plain(table)
        part = self._part_for(table.schema)
        if self._table.key:
            self._keys.append(merging.key_texts(table, self._table.key))
        elif (self._asked.since, self._asked.until) != (None, None):
            self._check_range(table)
        if self._table.cursor is not None:
            self._highest = merging.highest_of(table[self._table.cursor], self._table.cursor, self._highest)
        self._given += table.num_rows
        part.add(table)

    def _part_for(self, schema: pa.Schema) -> FileWriter:
        if self._parts and self._parts[-1].schema.equals(schema):
            return self._parts[-1]
        for name in (*self._table.key, *(() if self._table.cursor is None else (self._table.cursor,))):
            if name not in schema.names:
                raise self._error(
                    f"there is no column {name}: the columns are {', '.join(schema.names)}: set key or cursor to one"
                )
        if self._parts:
            schema, _ = evolved(self._parts[-1].schema, schema)
            if self._parts[-1].schema.equals(schema):
                return self._parts[-1]
        self._parts.append(self._new_file(f"part{len(self._parts)}", schema))
        return self._parts[-1]

    def _check_range(self, table: pa.Table) -> None:
        if outside := pc.sum(pc.invert(merging.is_within(table[self._table.cursor], self._asked))).as_py():
            raise self._error(
                f"{outside} rows are outside of the range that was asked for, from {self._asked.since} until "
                f"{self._asked.until}: correct the request, or name a key"
            )

    @property
    def waiting(self) -> int:
        """Rows that are in memory, until a row group is full."""
        return sum(part.waiting for part in self._parts)

    def flush(self) -> None:
        """Write the rows that are in memory."""
        for part in self._parts:
            part.flush()

    def discard(self) -> None:
        """Release what was not published."""
        for part in self._parts:
            part.discard()

    def publish(self) -> None:
        """Put the window into the table, whose lock the caller holds."""
        found, before = self._table.find(self._entry.window), self._table.schema()
        schema, changes = self._schema_after(before)
        kind = None if self._table.cursor is None else schema.field(self._table.cursor).type
        if found is not None and merging.is_overtaken(self._asked, self._table, found.ranges):
            log("%s: a newer answer of another run is there already", self._entry.window)
            self._result = Written(status="overtaken", rows=found.rows)
            return
        self._entry = replace(
            self._entry,
            dropped=self.dropped,
            merged=self.merged,
            created_at=self._entry.created_at if found is None else found.created_at,
            watermark=merging.watermark_after(found, self._asked, self._highest, kind),
        )
        for change in changes:
            log("%s: column %s", self._table, change)
        if changes:
            self._change_columns(schema)
        elif schema != before:
            with writing(self._table.columns) as columns:
                columns.write(schema.serialize())
        self._write(found, schema)

    def _schema_after(self, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        if not self._parts:
            raise ValueError(f"{self._table} {self._entry.window}: add a batch, even one without rows")
        new = self._parts[-1].schema
        for field in self._table.extra_columns:
            new = new.append(field)
        if before is None:
            return new, []
        try:
            return evolved(before, new)
        except DataProcessingException:
            if self._table.layer == "raw":
                raise
            # What is made of rows can be made again: other steps make other columns, window by window.
            log("%s: the window has columns of its own, until the others are made again", self._table)
            return new, []

    def _change_columns(self, schema: pa.Schema) -> None:
        """Give all windows other columns. None is put in place before all are written: a value may not fit."""
        folder = self._space / "changed"
        folder.mkdir()
        for window, entry in self._table.windows().items():
            path = self._table.file_of(window)
            file = FileWriter(folder / path.parent.name, schema)
            for rows in rows_in(path):
                file.add(rows)
            file.close(entry)
        with writing(folder / self._table.columns.name) as columns:
            columns.write(schema.serialize())
        publish(folder, self._table.changed)
        self._table.finish_change()

    def _new_file(self, name: str, schema: pa.Schema) -> FileWriter:
        return FileWriter(self._space / f"{name}.parquet", schema)

    def _write(self, found: WindowEntry | None, schema: pa.Schema) -> None:
        keys = pa.concat_arrays(self._keys) if self._keys else None
        last = None if keys is None else merging.last_of_each(keys)
        if found is not None and keys is not None:
            last = pc.and_(last, pc.invert(pc.is_in(keys, self._newer_keys(found))))
            keys = keys.filter(last)
        repeated = 0 if last is None else len(last) - last.true_count
        new = replace(self._asked, rows=self._given - repeated)
        replaced, stay = 0 if found is None else found.rows, pa.nulls(0, pa.bool_())
        if self._is_whole(found, schema) and not repeated:
            file = self._parts[0]
        else:
            file = self._new_file("whole", schema)
            self._parts.append(file)
            self._add_new(file, last)
            if found is not None:
                replaced, stay = self._add_old(file, found, keys)
        known = () if found is None else found.ranges
        entry = file.close(replace(self._entry, ranges=merging.with_range(new, known, stay)))
        publish(file.path, self._table.file_of(self._entry.window))
        added = max(0, new.rows - replaced)
        self._result = Written(status="written", rows=entry.rows, added=added, replaced=replaced)

    def _is_whole(self, found: WindowEntry | None, schema: pa.Schema) -> bool:
        """Return whether the file that was written is that of the window as it is."""
        replaces_all = found is None or not (self._table.key or self._asked.since or self._asked.until)
        return replaces_all and len(self._parts) == 1 and self._parts[0].schema.equals(schema)

    def _add_new(self, file: FileWriter, last: pa.Array | None) -> None:
        given = 0
        for rows in self._new_rows():
            mask = None if last is None else last.slice(given, rows.num_rows)
            given += rows.num_rows
            file.add(rows if mask is None else rows.filter(mask))

    def _newer_keys(self, found: WindowEntry) -> pa.Array:
        """Return the keys of the rows that a newer delivery has brought: they stay as they are."""
        newer = merging.newer_than(self._asked, found.ranges)
        keys, start = [pa.array([], pa.string())], 0
        for rows in rows_in(self._table.file_of(found.window)) if newer.true_count else ():
            keys.append(merging.key_texts(rows, self._table.key).filter(newer.slice(start, rows.num_rows)))
            start += rows.num_rows
        return pa.concat_arrays(keys)

    def _add_old(self, file: FileWriter, found: WindowEntry, keys: pa.Array | None) -> tuple[int, pa.Array]:
        """Return how many older rows were replaced, and the mask of those that stay."""
        replaced, stay = 0, list[pa.Array]()
        for rows in rows_in(self._table.file_of(found.window)):
            marked, stays, replaced_now = merging.judged(rows, self._table, self._asked, keys)
            file.add(marked.filter(stays))
            replaced += replaced_now
            stay.append(stays)
        return replaced, pa.concat_arrays(stay)

    def _new_rows(self) -> Iterator[pa.Table]:
        for part in self._parts[:-1]:  # The last one is the file that they are put into.
            part.close(self._entry)
            yield from rows_in(part.path)

    def _error(self, message: str) -> DataProcessingException:
        return rows_error(f"{self._table} {self._entry.window}: {message}", "lake")
