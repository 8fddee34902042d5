"""A table of the lake: where its files are, what identifies its rows, and what becomes of those that vanish.

    <lake>/<layer>/<tool>/<table>/window=<window>/rows.parquet   the rows; nothing else is in the table's folder
    <lake>/.state/<layer>/<tool>/<table>/                        its lock, and its index
    <lake>/.writing/                                             files that are being written

So every reader of Parquet reads the folder of a table as it stands, with `window` as a column.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import explained

WINDOW = "window"
"""The column that readers get from the names of the folders."""

_WRITING = ".writing"
_FILE = "rows.parquet"


Vanished = Literal["keep", "mark", "delete"]
"""What becomes of rows or windows that the source has no longer: they stay, stay with the time at which they were
missed, or are removed."""
VANISHED_AT = "vanished_at"
"""The column that is added to tables whose policy is "mark"."""
MOMENT = pa.timestamp("us", "UTC")


@dataclass(frozen=True, kw_only=True)
class LakeSettings:
    """The settings of one table in one layer of a lake.

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
    vanished_windows: Vanished = "keep"
    """What becomes of windows that the source has no longer: see `settle_windows`."""
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
    def lock(self) -> Path:
        """The file of the table's lock."""
        return self.state / ".lock"

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
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
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
        marks = "mark" in (self.policy, self.vanished_windows)
        return pa.schema([(VANISHED_AT, MOMENT)] if marks else [])


@contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Make a folder for what is being written, on the file system of the lake, and remove it when the block ends."""
    folder = root / _WRITING / uuid.uuid4().hex
    with explained(folder):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(root: Path, *, older_than: float) -> int:
    """Remove what writers that died have left, and return how many of them.

    Args:
        root: the folder of the lake.
        older_than: seconds since the last write. A writer that lives writes all the time.
    """
    before = time.time() - older_than
    removed = 0
    for folder in (root / _WRITING).glob("*"):
        with suppress(FileNotFoundError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if newest < before:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed
