"""One file of the lake: the rows of a window, and in the footer what is known of them.

Both are published by one rename, and whoever reads a window needs no lock.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from executor_adapter.exceptions import JobError
from executor_adapter.pipeline.disk import explained
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.lake.evolution import fitted

ROW_GROUP = 250_000
"""Rows of a row group; those of several batches are written together."""
SAMPLE, MAX_UNIQUE = 10_000, 0.95
"""Rows that say whether the values of a column repeat, and the share of them that have different values then."""
MAX_RANGES = 1000
"""Ranges that a window remembers. Only a run that was overtaken by so many others would not be seen as too old, and of
two old deliveries that come again the older one could win."""

WRITING = ".writing"
"""The folder of the lake in which files are written, each writer in one of its own."""

_KEY = b"executor_adapter.window"
_NO_DAMAGE = (pa.ArrowMemoryError, pa.ArrowCancelled, pa.ArrowNotImplementedError)
"""What Arrow raises that is not the file's fault: memory is short, a signal came, or a codec is not installed."""


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Make a folder for what is being written, on the file system of the lake, and remove it when the block ends.

    Raises:
        DataCollectionException: what the system refuses in the block, see `explained`.
    """
    folder = root / WRITING / uuid.uuid4().hex
    with explained(folder):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A part of a window that was asked for at one time, by its cursor column."""

    since: str | None = None
    """The first value; None: from the beginning."""
    until: str | None = None
    """The first value after it; None: all that there was."""
    collected_at: str
    """When the source was asked, in ISO 8601, UTC."""
    origin: str = ""
    """What was asked for: deliveries of several origins are merged into one window."""
    rows: int
    """How many rows of the window are from then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEntry:
    """Describes a window in the lake."""

    window: str
    rows: int
    fingerprint: str
    """Identifies the input of the rows: the same fingerprint gives the same rows."""
    created_at: str = ""
    """When it was written for the first time, in ISO 8601, UTC; what was merged into it before it was removed is not in
    it."""
    cursor: str | None = None
    """The cursor column; None without one, and in files of earlier versions."""
    watermark: str | None = None
    """The value of the cursor column up to which all was asked for; None without one."""
    ranges: tuple[Range, ...] = ()
    """What was asked for and when, in the order of their rows; those that later ones replaced are left out."""
    drops: dict[str, int] = field(default_factory=dict)
    """Rows of the input that are in no table, by the step that left them out."""
    merged: int = 0
    """Rows of the input that steps made other rows of; negative where there are more of these."""

    @property
    def collected_at(self) -> str:
        """When the source was last asked for a part of the window."""
        return max(each.collected_at for each in self.ranges)


_ENTRY = TypeAdapter(WindowEntry)
INDEX = TypeAdapter(dict[str, tuple[tuple[int, int, int], WindowEntry]])
"""By the folder of each window: the version of its file, and what that says."""


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file of the lake; the checksums of its pages are verified where they are read.

    A writer replaces the file by a new one, so what is open stays as it was.

    Raises:
        DataProcessingException: DATA_ERROR, the file is damaged.
    """
    with reading(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


def damaged(path: Path, why: object) -> JobError:
    """Return the error of a file that is not as it was written."""
    return rows_error(f"{path} is damaged: {why}: remove it, and process its landing again", "lake")


@contextmanager
def reading(path: Path, wrong: Callable[[Path, object], JobError] = damaged) -> Iterator[None]:
    """Raise as `wrong` what is wrong with a file of Parquet that is read in the block.

    What the system refuses is not the file's fault.
    """
    try:
        with explained(path):
            yield
    except (pa.ArrowException, OSError) as error:
        # Arrow raises some of its own errors as OSError, without a number of the system.
        if isinstance(error, _NO_DAMAGE) or getattr(error, "errno", None) is not None:
            raise
        raise wrong(path, error) from error


def read_entry(path: Path) -> WindowEntry:
    """Return the window in a file.

    Raises:
        FileNotFoundError: it is not there.
        DataProcessingException: DATA_ERROR, it is not a file of the lake, or of another version of it.
    """
    with opened(path) as file:
        metadata = file.metadata
    try:
        entry = _ENTRY.validate_json(metadata.metadata[_KEY])
    except (TypeError, KeyError) as error:
        raise damaged(path, error) from error
    except ValueError as error:
        table = ".".join(path.parts[-4:-2])
        said = f"{path} is of another version: `executor-adapter pipeline rebuild {table}` makes its table anew"
        raise rows_error(said, "lake") from error
    if entry.rows != metadata.num_rows:
        raise damaged(path, "the number of rows differs")
    return entry


def rows_in(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file, a row group at a time, of one version of it; at least one table, even without rows."""
    with opened(path) as file:
        with reading(path):
            for batch in file.iter_batches(ROW_GROUP):
                yield pa.Table.from_batches([batch.replace_schema_metadata()])
        if not file.metadata.num_rows:
            yield file.schema_arrow.remove_metadata().empty_table()


def repeating(rows: pa.Table) -> bool | list[str]:
    """Return the columns that Parquet is to write with a dictionary: those of whose first values some are equal.

    With a dictionary that is full and dropped, a column of other values takes twice as long to write, and the file is
    two thirds larger.
    """
    some = rows.slice(0, SAMPLE)
    if some.num_rows < SAMPLE or any(map(pa.types.is_nested, rows.schema.types)):
        return True
    return [name for name in some.column_names if len(pc.unique(some[name])) < SAMPLE * MAX_UNIQUE]


class FileWriter:
    """Writes the file of one window, in a `workspace`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._writer: pq.ParquetWriter | None = None
        self._spilled: list[Path] = []
        self._waiting: list[pa.Table] = []
        self.rows = self._written = 0

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        rows = fitted(rows, self.schema)
        self.rows += rows.num_rows
        self._waiting.append(rows)
        if self.rows - self._written >= ROW_GROUP:
            self._flush()

    def close(self, entry: WindowEntry) -> WindowEntry:
        """Write the rest and the footer to the disk; return the entry with the rows of the file."""
        self._flush()
        entry = replace(entry, rows=self.rows)
        writer = self._opened(pa.table([]))
        writer.add_key_value_metadata({_KEY: _ENTRY.dump_json(entry)})
        writer.close()
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return entry

    def _opened(self, rows: pa.Table) -> pq.ParquetWriter:
        # Not before there is something to write: a landing may have thousands of windows.
        if self._writer is None:
            options = {"compression": "zstd", "use_dictionary": repeating(rows)}
            self._writer = pq.ParquetWriter(self.path, self.schema, write_page_checksum=True, **options)
        return self._writer

    def spill(self) -> None:
        """Move the rows that are in memory into a file, which is closed: there may be thousands of windows."""
        if self._waiting:
            self._spilled.append(self.path.with_name(f"{self.path.name}.{len(self._spilled)}"))
            pq.write_table(pa.concat_tables(self._waiting), self._spilled[-1])
            self._waiting = []

    def _flush(self) -> None:
        """Write the rows of a row group."""
        if self.rows > self._written:
            spilled = (rows for path in self._spilled for rows in rows_in(path))
            rows = pa.concat_tables([*spilled, *self._waiting]).combine_chunks()
            self._opened(rows).write_table(rows, row_group_size=ROW_GROUP)
            self._spilled, self._waiting, self._written = [], [], self.rows
