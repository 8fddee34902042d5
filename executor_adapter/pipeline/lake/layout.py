"""Where the files of a table are.

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
from urllib.parse import quote

from executor_adapter.pipeline.disk import explained

WINDOW = "window"
"""The column that readers get from the names of the folders."""

_WRITING = ".writing"
_FILE = "rows.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The paths of one table in one layer of a lake."""

    root: Path
    layer: str
    tool: str
    table: str

    @property
    def folder(self) -> Path:
        """The folder that readers are given."""
        return self.root / self.layer / self.tool / self.table

    @property
    def state(self) -> Path:
        """The folder of what belongs to the table and is no data."""
        return self.root / ".state" / self.layer / self.tool / self.table

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
        return f"{self.tool}/{self.table} ({self.layer})"


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
