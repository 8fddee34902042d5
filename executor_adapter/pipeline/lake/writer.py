"""Writes one window: its rows as they come, and, when they are all there, the window with what it had before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.evolution import check_names, evolved, plain
from executor_adapter.pipeline.lake.files import ROW_GROUP, FileWriter, publish, rewrite_all, rows_in
from executor_adapter.pipeline.lake.layout import WINDOW, LakeSettings
from executor_adapter.pipeline.lake.merging import (
    is_overtaken,
    is_within,
    judged,
    key_texts,
    last_of_each,
    left_of,
    newer_than,
    with_range,
)
from executor_adapter.pipeline.lake.stored import Delivered, Range, Stored, StoredTable, WindowEntry, opened


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

    def __init__(self, settings: LakeSettings, entry: WindowEntry, asked: Range, space: Path) -> None:
        self._settings = settings
        self._entry = entry
        self._asked = asked
        self._space = space
        self._parts: list[FileWriter] = []
        self._keys: list[pa.Array] = []
        self._given = 0
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
            raise RuntimeError(f"{self._settings} {self._entry.window}: the rows are written when the block ends")
        return self._result

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows. Batches may differ in their columns; one without rows only tells its columns.

        Raises:
            DataProcessingException: DATA_ERROR or CONFIGURATION_ERROR, see `LakeTable.writing`.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        check_names(table.schema, (WINDOW, *self._settings.extra_columns.names))
        table = plain(table)
        part = self._part_for(table.schema)
        if self._settings.key:
            self._keys.append(key_texts(table, self._settings.key))
        elif (self._asked.since, self._asked.until) != (None, None):
            self._check_range(table)
        self._given += table.num_rows
        part.add(table)

    def _part_for(self, schema: pa.Schema) -> FileWriter:
        if self._parts and self._parts[-1].schema.equals(schema):
            return self._parts[-1]
        for name in (*self._settings.key, *(() if self._settings.cursor is None else (self._settings.cursor,))):
            if name not in schema.names:
                raise self._error(
                    f"there is no column {name}: the columns are {', '.join(schema.names)}: set key or cursor to one"
                )
        if self._parts:
            schema, _ = evolved(self._parts[-1].schema, schema)
            if self._parts[-1].schema.equals(schema):
                return self._parts[-1]
        self._parts.append(FileWriter(self._space / f"{len(self._parts)}.part", schema, self._settings.cursor))
        return self._parts[-1]

    def _check_range(self, table: pa.Table) -> None:
        outside = pc.sum(pc.invert(is_within(table[self._settings.cursor], self._asked))).as_py()
        if outside:
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

    def publish(self, stored: StoredTable) -> None:
        """Put the window into the table, whose lock the caller holds alone."""
        found, before = stored.find(self._entry.window), stored.schema()
        schema, changes = self._schema_after(before)
        kind = None if self._settings.cursor is None else schema.field(self._settings.cursor).type
        known = () if found is None else found.entry.ranges
        if found is not None and is_overtaken(self._asked, known, kind):
            log("%s: a newer answer of another run is there already", self._entry.window)
            self._result = Written(status="overtaken", rows=found.entry.rows)
            return
        self._entry = replace(
            self._entry,
            ranges=with_range(self._asked, known, kind),
            dropped=self.dropped,
            merged=self.merged,
            created_at=self._entry.created_at if found is None else found.entry.created_at,
        )
        for change in changes:
            log("%s: column %s", self._settings, change)
        if before is not None and changes:
            rewrite_all(stored, schema, self._space, self._settings.cursor)
            found = stored.find(self._entry.window)
        self._write(stored, found, schema)

    def _schema_after(self, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        if not self._parts:
            raise ValueError(f"{self._settings} {self._entry.window}: add a batch, even one without rows")
        new = self._parts[-1].schema
        for field in self._settings.extra_columns:
            new = new.append(field)
        if before is None:
            return new, []
        try:
            return evolved(before, new)
        except DataProcessingException:
            if self._settings.layer == "raw":
                raise
            # What is made of rows can be made again: other steps make other columns, window by window.
            log("%s: the window has columns of its own, until the others are made again", self._settings)
            return new, []

    def _write(self, stored: StoredTable, found: Stored | None, schema: pa.Schema) -> None:
        keys = pa.concat_arrays(self._keys) if self._keys else None
        last = None if keys is None else last_of_each(keys)
        if found is not None and keys is not None:
            last = pc.and_(last, pc.invert(pc.is_in(keys, self._newer_keys(found))))
            keys = keys.filter(last)
        repeated = 0 if last is None else len(last) - last.true_count
        if self._is_whole(found, schema) and not repeated:
            file, replaced, left = self._parts[0], 0 if found is None else found.entry.rows, list[Delivered]()
        else:
            file = FileWriter(self._space / "whole.parquet", schema, self._settings.cursor)
            self._parts.append(file)
            self._add_new(file, last)
            replaced, left = self._add_old(file, found, keys)
        new = Delivered(self._asked.collected_at, self._given - repeated)
        entry = file.close(replace(self._entry, delivered=(new, *left)))
        publish(file.path, stored.table.file_of(self._entry.window))
        added = max(0, new.rows - replaced)
        self._result = Written(status="written", rows=entry.rows, added=added, replaced=replaced)

    def _is_whole(self, found: Stored | None, schema: pa.Schema) -> bool:
        """Return whether the file that was written is that of the window as it is."""
        replaces_all = found is None or not (self._settings.key or self._asked.since or self._asked.until)
        return replaces_all and len(self._parts) == 1 and self._parts[0].schema.equals(schema)

    def _add_new(self, file: FileWriter, last: pa.Array | None) -> None:
        given = 0
        for rows in self._new_rows():
            mask = None if last is None else last.slice(given, rows.num_rows)
            given += rows.num_rows
            file.add(rows if mask is None else rows.filter(mask))

    def _newer_keys(self, found: Stored) -> pa.Array:
        """Return the keys of the rows that a newer delivery has brought: they stay as they are."""
        newer = newer_than(self._asked, found.entry.delivered)
        keys, start = [pa.array([], pa.string())], 0
        for rows in rows_in(found) if newer.true_count else ():
            keys.append(key_texts(rows, self._settings.key).filter(newer.slice(start, rows.num_rows)))
            start += rows.num_rows
        return pa.concat_arrays(keys)

    def _add_old(self, file: FileWriter, found: Stored | None, keys: pa.Array | None) -> tuple[int, list[Delivered]]:
        """Return how many older rows were replaced, and whence those are that stay."""
        if found is None:
            return 0, []
        replaced, stay = 0, list[pa.Array]()
        for rows in rows_in(found):
            marked, stays, replaced_now = judged(rows, self._settings, self._asked, keys)
            file.add(marked.filter(stays))
            replaced += replaced_now
            stay.append(stays)
        return replaced, left_of(found.entry.delivered, pa.concat_arrays(stay))

    def _new_rows(self) -> Iterator[pa.Table]:
        for part in self._parts[:-1]:  # The last one is the file that they are put into.
            part.close(self._entry)
            with opened(part.path) as file:
                for batch in file.iter_batches(ROW_GROUP):
                    yield pa.Table.from_batches([batch]).replace_schema_metadata()

    def _error(self, message: str) -> DataProcessingException:
        return rows_error(f"{self._settings} {self._entry.window}: {message}", "lake")
