"""A table of the lake: its windows are written completely or not at all, once, and read by whatever reads Parquet.

    <lake>/<layer>/<tool>/<table>/window=<window>/rows.parquet   the rows; nothing else is in the table's folder
    <lake>/.state/<layer>/<tool>/<table>/                        its lock and its index; while its columns change,
                                                                 all windows with the new ones
    <lake>/.writing/                                             files that are being written

So every reader of Parquet reads the folder of a table as it stands, with `window` as a column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.exceptions import ConfigurationError, DataCollectionException, DataProcessingException
from executor_adapter.pipeline.disk import digest_of, explained, locked, publish, writing
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake import merging
from executor_adapter.pipeline.lake.evolution import check_names, evolved, plain
from executor_adapter.pipeline.lake.stored import (
    INDEX,
    FileWriter,
    Range,
    WindowEntry,
    opened,
    read_entry,
    rows_in,
    workspace,
)
from executor_adapter.pipeline.text_rows import READ, REASON, ROW

WINDOW = "window"
"""The column that readers get from the names of the folders."""
VANISHED_AT = "vanished_at"
"""The column that is added to tables whose policy is "mark"."""

_RESERVED = (WINDOW, ROW, REASON, "file_row_number")
"""Names of columns that the rows get where they are read, in lower case."""
_FILE = "rows.parquet"
_MOMENT = pa.timestamp("us", "UTC")
_DATED = re.compile(r"(\d{4}-\d\d(-\d\d)?|(19|20)\d\d)")
"""Matches the name of a day, a month or a year; any other four digits, as those of a shop, may be a number."""

Vanished = Literal["keep", "mark", "delete"]
"""What becomes of rows that the source has no longer: they stay, stay with the time at which they were missed, or are
removed."""


@dataclass(frozen=True, kw_only=True)
class LakeTable:
    """One table in one layer of a lake. Picklable; it opens nothing until it is used.

    Raises:
        ConfigurationError: the settings contradict one another.
    """

    root: Path
    """The folder of the lake."""
    layer: str
    """What kind of tables it is among: "raw", "processed", "rejected", ..."""
    tool: str
    name: str
    key: tuple[str, ...] = ()
    """The columns that identify a row within its window; none: a window is replaced altogether."""
    cursor: str | None = None
    """The column by which the source is asked for what is new; with a key, by which rows that come again are merged."""
    vanished_rows: Vanished | None = None
    """What becomes of rows that the source has no longer; None: "keep" with a key, "delete" without."""
    lock_timeout: float = 300.0
    """Seconds to wait for another job that writes to the table."""

    def __post_init__(self) -> None:
        if self.cursor is not None and not self.key:
            raise ConfigurationError(
                f"{self}: cursor needs a key, by which rows that come again are merged: name the columns that identify "
                "a row, or leave cursor out"
            )
        if self.vanished_rows is not None and self.cursor is not None:
            raise ConfigurationError(
                f"{self}: vanished_rows does not go with cursor: an answer from there on does not say which older rows "
                "are gone"
            )
        if self.vanished_rows in ("keep", "mark") and not self.key:
            raise ConfigurationError(
                f"{self}: vanished_rows: {self.vanished_rows!r} needs a key: name the columns that identify a row"
            )

    @property
    def folder(self) -> Path:
        """The folder to read with pyarrow, pandas, Polars or DuckDB; `window` is a column of what they read."""
        return self.root / self.layer / self.tool / self.name

    @property
    def state(self) -> Path:
        """The folder of what belongs to the table and is no data."""
        return self.root / ".state" / self.layer / self.tool / self.name

    @property
    def changed(self) -> Path:
        """The folder of windows with other columns, all of them, from which they are put in their places."""
        return self.state / "changed"

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the table's lock, to change it; a change of its columns that was cut short is finished before."""
        with locked(self.state / ".lock", timeout=self.lock_timeout):
            if self.changed.exists():
                log("%s: the process that changed its columns was killed on the way: all windows get them now", self)
                self.finish_change()
            yield

    def finish_change(self) -> None:
        """Put the windows that have other columns in their places; the caller holds the lock."""
        for path in self.changed.glob(f"{WINDOW}=*"):
            publish(path, self.folder / path.name / _FILE)
        self.changed.rmdir()

    def file_of(self, window: str) -> Path:
        """Return where the rows of a window are."""
        # A window can be any value of a column: "America/New_York" must not become two folders, nor ".." one up.
        name = quote(window, safe=" ").replace(".", "%2E")
        return self.folder / f"{WINDOW}={name}" / _FILE

    def any_file(self) -> Path | None:
        """Return one of the files, without a look at the others; None where there is none."""
        with suppress(FileNotFoundError), explained(self.folder), os.scandir(self.folder) as entries:
            for entry in entries:
                file = Path(entry.path) / _FILE
                if entry.name.startswith(f"{WINDOW}=") and file.exists():
                    return file
        return None

    def __str__(self) -> str:
        return f"{self.tool}/{self.name} ({self.layer})"

    @property
    def policy(self) -> Vanished:
        """What becomes of rows that the source has no longer."""
        return self.vanished_rows or ("keep" if self.key else "delete")

    @property
    def extra_columns(self) -> pa.Schema:
        """The columns that the lake adds to those of the rows."""
        return pa.schema([(VANISHED_AT, _MOMENT)] if self.policy == "mark" else [])

    def windows(self) -> dict[str, WindowEntry]:
        """Return the windows that the table has, by name, in the order of the names of their folders.

        The index has what the footers say, so that a footer is opened once after its file was written.
        """
        with explained(self.state):
            if self.changed.exists():  # Files that are mixed may be refused by readers.
                with self.exclusive():
                    pass
        index, known, found = self.state / "index.json", dict[str, Any](), dict[str, Any]()
        with suppress(FileNotFoundError, ValueError), explained(index):
            known = INDEX.validate_json(index.read_bytes())
        for path in sorted(self.folder.glob(f"{WINDOW}=*/{_FILE}")):
            with suppress(FileNotFoundError):  # It was removed meanwhile.
                name, state = path.parent.name, os.stat(path)
                version = (state.st_ino, state.st_mtime_ns, state.st_size)
                before = known.get(name)
                found[name] = before if before and before[0] == version else (version, read_entry(path))
        if found != known:
            # Without it each footer is opened again: a full disk is read, and cleaned, too.
            with suppress(DataCollectionException), writing(index, sync=False) as file:
                file.write(INDEX.dump_json(found))
        return {entry.window: entry for _, entry in found.values()}

    def find(self, window: str) -> WindowEntry | None:
        """Return what is known of a window, None where the table has none."""
        with suppress(FileNotFoundError):
            return read_entry(self.file_of(window))
        return None

    def get(self, window: str) -> WindowEntry:
        """Return what is known of a window.

        Raises:
            DataProcessingException: DATA_ERROR, the table has none of that name.
        """
        if (found := self.find(window)) is None:
            raise rows_error(f"{self} has no window {window!r}: collect it first", "lake")
        return found

    def version(self) -> str:
        """Return what changes whenever a row of the table may have changed."""
        # The time tells what was made again by other code of a step, which is in no fingerprint.
        return digest_of(sorted((name, each.fingerprint, each.collected_at) for name, each in self.windows().items()))

    def schema(self) -> pa.Schema | None:
        """Return the columns of the table; None where it has no window yet."""
        if (path := self.any_file()) is None:
            return None
        with opened(path) as file:
            return file.schema_arrow.remove_metadata()

    def read(self, window: str) -> pa.Table:
        """Return the rows of a window.

        Raises:
            DataProcessingException: DATA_ERROR, the table has no such window, or its file is damaged.
        """
        return pa.concat_tables(rows_in(self.file_of(self.get(window).window)))

    @contextmanager
    def writing(
        self,
        window: str,
        *,
        fingerprint: str,
        collected_at: datetime | None = None,
        since: str | None = None,
        until: str | None = None,
        origin: str = "",
    ) -> Iterator[Writer]:
        """Write what a source has of a window; it is in the lake when the block ends, and not at all if it raises.

        What the window had before is merged with it by the table's key; rows that are no longer there are kept, marked
        or deleted by the table's policy. `Writer.added` says how many are new. If a newer
        answer is in the lake already, because another run was faster, this one is dropped.

        Args:
            window: the name of the window.
            fingerprint: identifies what the rows were made of.
            collected_at: when the source was asked, with a zone; None: now.
            since: the first value of the cursor column that was asked for; None: from the beginning.
            until: the first value that was asked for no more; None: all.
            origin: what the rows are of, such as the name of a file: of two answers of one origin the newer one wins,
                and of several origins the newer row with the same key.

        Raises:
            DataProcessingException: CONFIGURATION_ERROR, a column would be narrowed; DATA_ERROR, two columns have the
                same name, or the key is missing.
            DataCollectionException: LOCKED, somebody else writes for too long.
        """
        now = datetime.now(UTC)
        asked_at = (collected_at or now).astimezone(UTC).isoformat(timespec="microseconds")
        asked = Range(since=since, until=until, collected_at=asked_at, origin=origin, rows=0)
        entry = WindowEntry(window=window, rows=0, fingerprint=fingerprint, created_at=now.isoformat(), ranges=(asked,))
        with workspace(self.root) as space:
            writer = Writer(self, entry, asked, space)
            yield writer
            with self.exclusive():
                writer.publish()

    def next_since(self, window: str, look_back: float = 0, start: str | None = None) -> str | None:
        """Return from where a source is to be asked for what is new.

        It is the highest value up to which all was asked for; rows with that value too, since more may have come. A
        part after a gap, such as a range that was collected by itself, does not count.

        Args:
            window: the name of the window.
            look_back: how late rows may come: they are found again up to so far before: seconds for moments, days for
                dates, else a number.
            start: where it begins when nothing was collected, and before which it never does; None: from the beginning.
        """
        watermark, schema = self.watermark_of(self.find(window)), self.schema()
        if watermark is None or self.cursor is None or schema is None:
            return start
        return merging.since_of(watermark, schema.field(self.cursor).type, look_back, start)

    def watermark_of(self, found: WindowEntry | None) -> str | None:
        """Return the value of the cursor up to which all of a window was asked for; None: not by this column."""
        return found.watermark if found and found.cursor in (None, self.cursor) else None


class Writer:
    """Takes the rows of one window; see `LakeTable.writing`."""

    def __init__(self, table: LakeTable, entry: WindowEntry, asked: Range, space: Path) -> None:
        self._table, self._entry, self._asked, self._space = table, entry, asked, space
        self._parts: list[FileWriter] = []
        self.keys, self.gone, self.overtaken = list[pa.Array](), list[pa.Array](), list[pa.Array]()
        """The keys, as texts, of its rows, of older ones that go without one in their place, and of late ones."""
        self._cursor = list[pa.Table]()
        self.rows = self.added = 0
        """Rows of the window, and those that it did not have, once the block has ended; 0 where it was overtaken."""
        self.drops, self.merged = dict[str, int](), 0
        """Rows of the input that are left out on purpose, or became others: see `WindowEntry`."""

    def add(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows. Batches may differ in their columns; one without rows only tells its columns.

        Raises:
            DataProcessingException: DATA_ERROR or CONFIGURATION_ERROR, see `LakeTable.writing`.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        check_names(table.schema, (*_RESERVED, *self._table.extra_columns.names))
        table = plain(table)
        part = self._part_for(table.schema)
        if self._table.key:
            self.keys.append(merging.key_texts(table, self._table.key))
        if self._table.cursor is not None:
            self._cursor.append(table.select([self._table.cursor]))
        part.add(table)

    def _part_for(self, schema: pa.Schema) -> FileWriter:
        for name in (*self._table.key, *(() if self._table.cursor is None else (self._table.cursor,))):
            if name not in schema.names:
                said = f"there is no column {name}: the columns are {', '.join(schema.names)}: set key or cursor to one"
                raise rows_error(f"{self._table} {self._entry.window}: {said}", "lake")
        if self._parts:
            schema, _ = evolved(self._parts[-1].schema, schema)
        if not self._parts or not self._parts[-1].schema.equals(schema):
            self._parts.append(FileWriter(self._space / f"part{len(self._parts)}.parquet", schema))
        return self._parts[-1]

    def spill(self) -> None:
        """Move the rows that are in memory to the disk."""
        for part in self._parts:
            part.spill()

    def publish(self) -> None:
        """Put the window into the table, whose lock the caller holds."""
        found, before = self._table.find(self._entry.window), self._table.schema()
        schema, changes = self._schema_after(before)
        kind, values, highest = None, None, None
        if self._table.cursor is not None:
            kind = schema.field(self._table.cursor).type
            values = pa.concat_tables(self._cursor, promote_options="permissive").column(0).combine_chunks()
            highest = merging.highest_of(values, self._table.cursor)
        if found is not None and self._is_overtaken(found.ranges):
            log("%s: a newer answer of another run is there already", self._entry.window)
            return
        self._entry = replace(
            self._entry,
            drops=self.drops,
            merged=self.merged,
            created_at=self._entry.created_at if found is None else found.created_at,
            cursor=self._table.cursor,
            watermark=merging.watermark_after(self._table.watermark_of(found), self._asked, highest, kind),
        )
        for change in changes:
            log("%s: column %s", self._table, change)
        if changes:
            self._change_columns(schema)
        self._write(found, schema, values)

    def _schema_after(self, before: pa.Schema | None) -> tuple[pa.Schema, list[str]]:
        if not self._parts:
            raise ValueError(f"{self._table} {self._entry.window}: add a batch, even one without rows")
        new = pa.schema([*self._parts[-1].schema, *self._table.extra_columns])
        if before is None:
            return new, []
        is_raw = self._table.layer == "raw"
        if self._table.layer == "processed" and not any(part.rows for part in self._parts):
            return before, []  # No value says what the columns are.
        try:
            return evolved(before, new, is_declared=is_raw)
        except DataProcessingException:
            if is_raw:
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
        publish(folder, self._table.changed)
        self._table.finish_change()

    def _is_overtaken(self, known: Sequence[Range]) -> bool:
        """Return whether a newer answer is in the lake already, in whose place this one must not come."""
        mine = self._asked
        newer = (each for each in known if each.origin == mine.origin and each.collected_at > mine.collected_at)
        # With a cursor either has rows that the other has not: they are merged, the newer ones above.
        return self._table.cursor is None and any(newer)

    def _write(self, found: WindowEntry | None, schema: pa.Schema, values: pa.Array | None) -> None:
        given = sum(part.rows for part in self._parts)
        keys, gone = (pa.concat_arrays([pa.nulls(0, pa.string()), *each]) for each in (self.keys, self.gone))
        has_key = bool(self._table.key)
        # Of rejects each counts, also of an answer that has a key twice.
        is_merged = has_key and self._table.layer != "rejected"
        last = merging.last_of_each(keys, values) if is_merged else pc.is_null(pa.nulls(given))
        if merged := given - last.true_count:
            log("%s %s: %d rows have the key of another row", self._table, self._entry.window, merged)
        if has_key and (found is not None or self.overtaken):
            newer = self.newer_keys()
            last = pc.and_(last, pc.invert(pc.is_in(keys, newer)))
            keys, gone = keys.filter(last), gone.filter(pc.invert(pc.is_in(gone, newer)))
        replaced, stay = 0 if found is None else found.rows, pa.nulls(0, pa.bool_())
        if not (found and has_key) and last.true_count == given and [each.schema for each in self._parts] == [schema]:
            file = self._parts[0]  # It is that of the window as it is.
        else:
            file = FileWriter(self._space / "whole.parquet", schema)
            self._add_new(file, last)
            if found is not None and has_key:
                replaced, stay = self._add_old(file, found, keys, gone)
        new = replace(self._asked, rows=last.true_count)
        known = () if found is None else found.ranges
        entry = file.close(replace(self._entry, ranges=merging.with_range(new, known, stay)))
        publish(file.path, self._table.file_of(self._entry.window))
        self.rows, self.added = entry.rows, max(0, new.rows - replaced)

    def _add_new(self, file: FileWriter, last: pa.Array) -> None:
        start = 0
        for part in self._parts:
            part.close(self._entry)
            for rows in rows_in(part.path):
                file.add(rows.filter(last.slice(start, rows.num_rows)))
                start += rows.num_rows
        self._parts.append(file)

    def newer_keys(self) -> pa.Array:
        """Return the keys of the rows that a newer delivery has brought: they stay as they are."""
        found, start, at = self._table.find(self._entry.window), 0, self._asked.collected_at
        masks = [pa.repeat(each.collected_at > at, each.rows) for each in (found.ranges if found else ())]
        newer = pa.concat_arrays([pa.nulls(0, pa.bool_()), *masks])
        keys = [pa.nulls(0, pa.string()), *self.overtaken]
        for rows in rows_in(self._table.file_of(self._entry.window)) if newer.true_count else ():
            keys.append(merging.key_texts(rows, self._table.key).filter(newer.slice(start, rows.num_rows)))
            start += rows.num_rows
        return pa.concat_arrays(keys)

    def _add_old(self, file: FileWriter, found: WindowEntry, keys: pa.Array, gone: pa.Array) -> tuple[int, pa.Array]:
        """Return how many older rows were replaced, and the mask of those that stay."""
        replaced, stay = 0, list[pa.Array]()
        for rows in rows_in(self._table.file_of(found.window)):
            old = merging.key_texts(rows, self._table.key)
            is_replaced = pc.is_in(old, keys)
            replaced += is_replaced.true_count
            stays = pc.invert(pc.or_(is_replaced, pc.is_in(old, gone)))
            if self._table.policy == "mark":
                rows = self._marked(rows, stays)
            if self._table.policy == "delete":
                stays = pc.is_valid(pa.nulls(rows.num_rows))
            file.add(rows.filter(stays))
            stay.append(stays)
        return replaced, pa.concat_arrays(stay)

    def _marked(self, old: pa.Table, stays: pa.Array) -> pa.Table:
        """Return older rows, of which those that stay have vanished now, or before."""
        before = old[VANISHED_AT].combine_chunks()
        now = pa.scalar(datetime.fromisoformat(self._asked.collected_at), _MOMENT)
        marks = pc.if_else(pc.and_(stays, pc.is_null(before)), now, before)
        return old.set_column(old.schema.get_field_index(VANISHED_AT), VANISHED_AT, marks)


def remove_windows(table: LakeTable, windows: Collection[str]) -> None:
    """Remove windows; those that the table does not have are passed over."""
    if paths := [path for path in map(table.file_of, windows) if path.exists()]:
        with table.exclusive():
            for path in paths:
                with suppress(FileNotFoundError):  # Another job was faster.
                    path.unlink()
                    path.parent.rmdir()


def is_expired(window: str, before: date) -> bool:
    """Return whether a window that is named by a day, a month or a year was over before a day.

    Whoever collects asks it too, so that what has expired is not collected again. A window of another name never
    expires.
    """
    return not is_between(window.removeprefix(READ), before.isoformat(), None)


def is_between(window: str, since: str | None, until: str | None) -> bool:
    """Return whether a part of a window that is named by a day, a month or a year is in a range of days.

    A window of another name always is. The bounds are in ISO 8601; `until` is the first moment after the range.
    """
    if not _DATED.fullmatch(window):
        return True
    last = until and (datetime.fromisoformat(until) - timedelta(microseconds=1)).isoformat()
    return (since is None or window >= since[: len(window)]) and (last is None or window <= last[: len(window)])
