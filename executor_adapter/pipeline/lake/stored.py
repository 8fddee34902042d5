"""What is stored of a table: where its files are, and what each says of itself in its footer.

    <lake>/<layer>/<tool>/<table>/window=<window>/rows.parquet   the rows; nothing else is in the table's folder
    <lake>/.state/<layer>/<tool>/<table>/                        its lock, its index and its columns; while
                                                                 they change, all windows with the new ones
    <lake>/.writing/                                             files that are being written

So every reader of Parquet reads the folder of a table as it stands, with `window` as a column. Rows and what is known
of them are one file, so that both are published by one rename, and whoever reads a window needs no lock.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.disk import digest_of, explained, locked, publish, writing
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.text_rows import BATCH_ROWS

ROW_GROUP = 250_000
"""Rows of a row group; those of several batches are written together."""
MAX_RANGES = 1000
"""Ranges that a window remembers. Only a run that was overtaken by so many others would not be seen as too old, and of
two old deliveries that come again the older one could win."""

WINDOW = "window"
"""The column that readers get from the names of the folders."""

WRITING = ".writing"
"""The folder of the lake in which files are written, each writer in one of its own."""

_KEY = b"executor_adapter.window"
_FILE = "rows.parquet"

Vanished = Literal["keep", "mark", "delete"]
"""What becomes of rows that the source has no longer: they stay, stay with the time at which they were missed, or are
removed."""
VANISHED_AT = "vanished_at"
"""The column that is added to tables whose policy is "mark"."""
MOMENT = pa.timestamp("us", "UTC")


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Make a folder for what is being written, on the file system of the lake, and remove it when the block ends."""
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
    watermark: str | None = None
    """The value of the cursor column up to which all was asked for; None without one."""
    ranges: tuple[Range, ...] = ()
    """What was asked for and when, in the order of their rows; those that later ones replaced are left out."""
    dropped: int = 0
    """Rows of the input that steps left out, and that are in no table."""
    merged: int = 0
    """Rows of the input that steps made other rows of; negative where there are more of these."""

    @property
    def collected_at(self) -> str:
        """When the source was last asked for a part of the window."""
        return max(each.collected_at for each in self.ranges)


_ENTRY = TypeAdapter(WindowEntry)
_INDEX = TypeAdapter(dict[str, tuple[tuple[int, int, int], WindowEntry]])
"""By the folder of each window: the version of its file, and what that says."""


def footer_of(entry: WindowEntry) -> dict[bytes, bytes]:
    """Return what is written into the footer."""
    return {_KEY: _ENTRY.dump_json(entry)}


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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise what is wrong with a file while it is read in the block; what the system refuses is not the file's fault.

    Raises:
        DataProcessingException: DATA_ERROR, the file is damaged.
    """
    try:
        with explained(path):
            yield
    except pa.ArrowException as error:
        raise damaged(path, error) from error
    except OSError as error:
        # Arrow raises some of its own errors as OSError, without a number of the system.
        if error.errno is not None:
            raise
        raise damaged(path, error) from error


def _read_entry(path: Path) -> WindowEntry:
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


def damaged(path: Path, why: object) -> DataProcessingException:
    """Return the error of a file that is not as it was written."""
    return rows_error(f"{path} is damaged: {why}: remove it, and process its landing again", "lake")


def _rows_of(file: pq.ParquetFile, path: Path, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open file; at least one batch, which may have no rows."""
    batches, empty = file.iter_batches(batch_rows), True
    while True:
        with reading(path):
            batch = next(batches, None)
        if batch is None:
            break
        empty = False
        yield batch.replace_schema_metadata()
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow.remove_metadata())


def rows_in(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a file, a row group at a time."""
    with opened(path) as file:
        for batch in _rows_of(file, path, ROW_GROUP):
            yield pa.Table.from_batches([batch])


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """What one table in one layer of a lake is, and the reading of its files.

    Raises:
        ConfigurationError: they contradict one another.
    """

    root: Path
    """The folder of the lake."""
    layer: str
    """What kind of tables it is among: "raw", "processed", "rejects", ..."""
    tool: str
    name: str
    key: tuple[str, ...] = ()
    """The columns that identify a row within its window; none: a window, or a range of it, is replaced altogether."""
    cursor: str | None = None
    """The column by which the source is asked for what is new."""
    vanished_rows: Vanished | None = None
    """What becomes of rows that the source has no longer; None: "keep" with a key, "delete" without."""
    lock_timeout: float = 300.0
    """Seconds to wait for another job that writes to the table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        key: Any = self.key  # People write one column as text.
        object.__setattr__(self, "key", (key,) if isinstance(key, str) else tuple(key))
        for field in ("layer", "tool", "name"):
            value = getattr(self, field)
            # They are names of folders, and readers pass over those that begin with a dot or an underscore.
            if not value or value.startswith((".", "_")) or "/" in value:
                raise ConfigurationError(
                    f"{field}: {value!r} is not allowed: must be a name without /, that begins with neither . nor _"
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
    def columns(self) -> Path:
        """The file of the table's columns."""
        return self.state / "columns"

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
        with suppress(FileNotFoundError):  # It may have been killed after that.
            publish(self.changed / self.columns.name, self.columns)
        self.changed.rmdir()

    def file_of(self, window: str) -> Path:
        """Return where the rows of a window are."""
        # A window can be any value of a column: "America/New_York" must not become two folders, nor ".." one up.
        name = quote(window, safe=" ").replace(".", "%2E")
        return self.folder / f"{WINDOW}={name}" / _FILE

    def files(self) -> list[Path]:
        """Return all files of the table, in the order of their folders' names."""
        return sorted(self.folder.glob(f"{WINDOW}=*/{_FILE}"))

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
        return pa.schema([(VANISHED_AT, MOMENT)] if self.policy == "mark" else [])

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
            known = _INDEX.validate_json(index.read_bytes())
        for path in self.files():
            with suppress(FileNotFoundError):  # It was removed meanwhile.
                name, state = path.parent.name, os.stat(path)
                version = (state.st_ino, state.st_mtime_ns, state.st_size)
                before = known.get(name)
                found[name] = before if before and before[0] == version else (version, _read_entry(path))
        if found != known:
            with writing(index, sync=False) as file:
                file.write(_INDEX.dump_json(found))
        return {entry.window: entry for _, entry in found.values()}

    def find(self, window: str, fingerprint: str | None = None) -> WindowEntry | None:
        """Return what is known of a window, None where the table has none; a given `fingerprint` must match too."""
        try:
            found = _read_entry(self.file_of(window))
        except FileNotFoundError:
            return None
        return found if fingerprint in (None, found.fingerprint) else None

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
        entries = sorted((window, each.fingerprint, each.rows) for window, each in self.windows().items())
        return digest_of(entries)

    def schema(self) -> pa.Schema | None:
        """Return the columns of the table; None where it has no window yet."""
        if (path := self.any_file()) is None:
            return None
        if self.columns.exists():
            return pa.ipc.read_schema(pa.py_buffer(self.columns.read_bytes()))
        with opened(path) as file:
            return file.schema_arrow.remove_metadata()

    def read(self, window: str) -> pa.Table:
        """Return the rows of a window.

        Raises:
            DataProcessingException: DATA_ERROR, the table has no such window, or its file is damaged.
        """
        with self.reading(window) as batches:
            return pa.Table.from_batches(batches)

    @contextmanager
    def reading(self, window: str, batch_rows: int = BATCH_ROWS) -> Iterator[Iterator[pa.RecordBatch]]:
        """Open a window, to read it in batches of at most `batch_rows`: one version of it, also while it is replaced.

        There is at least one batch, which may have no rows.

        Raises:
            DataProcessingException: DATA_ERROR, as `read`.
        """
        path = self.file_of(self.get(window).window)
        with opened(path) as file:
            yield _rows_of(file, path, batch_rows)
