"""Landing: the bytes of a source as they were received, one file a page or source file, with a manifest.

    <lake>/landing/<tool>/<table>/<window>/<landing>/00001.json     a page or a source file, as received
                                                     files.ndjson   the journal: a line for each whole file
                                                     manifest.json  counts and checksums, written last
                                                     .lock          held by the process that receives

A landing is complete when it has its manifest. One that was interrupted is continued after its last whole file: by the
next attempt of the same job, which finds it through the job's checkpoint, and by another run within `RESUME_WITHIN`.
A complete landing can be read as often as wanted, without asking the source again.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import TEMPORARY, digest_of, explained, locked, writing
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.worker.context import running_job

RESUME_WITHIN = 3600.0
"""Seconds after its last file in which an interrupted landing is continued by another run; later it starts anew."""

SINGLE_WINDOW = "all"
"""The name of the only window of a table that is not divided."""

_JOURNAL = "files.ndjson"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Names one part of a table, and its bounds where the source is asked for that part alone."""

    name: str = SINGLE_WINDOW
    since: str | None = None
    """The first value of the column by which the source is asked, as text (a moment in ISO 8601, or a number); rows
    with this value belong to the window. None: from the beginning."""
    until: str | None = None
    """The first value after the window. None: up to now."""
    cursor: str | None = None
    """The column that has these values, where the configuration names it."""
    size: int = field(default=sys.maxsize, compare=False)
    """The bytes that it has at the source, where they are known: several small windows are collected by one job."""
    is_sample: bool = field(default=False, compare=False)
    """Whether its first rows are enough: a page, a batch, or the beginning of a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedFile:
    """One file of a landing: a page of an API, or a file of the source."""

    name: str
    """The name in the landing's folder; its suffix says what it holds."""
    origin: str
    """Where it came from, without secrets: a URL, a path, a statement."""
    received_at: str
    size: int
    """Bytes, as received."""
    checksum: str
    """SHA-256, in hexadecimal."""
    rows: int | None = None
    """The rows in it, where the source counted them when it received it."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the source keeps of it, as JSON: the state from which the next page is asked for."""

    def is_in(self, folder: Path) -> bool:
        """Return whether it is there with all of its bytes, of which a power cut may have left none."""
        path = folder / self.name
        return path.exists() and path.stat().st_size == self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Describes a complete landing."""

    window: Window
    fingerprint: str
    """Identifies what was asked for: the source's settings and the window."""
    started_at: str
    content: str
    """Identifies what was received, whenever it was: SHA-256 over the checksums of all files."""
    files: tuple[LandedFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A complete landing: its folder, and what is in it. Picklable."""

    folder: Path
    manifest: Manifest
    is_new: bool = field(default=False, compare=False)
    """Whether it was received just now, so that its bytes are as they were received."""

    @property
    def files(self) -> tuple[LandedFile, ...]:
        """The files, in the order in which they were received."""
        return self.manifest.files

    @property
    def rows(self) -> int:
        """The rows that the source has counted."""
        return sum(file.rows or 0 for file in self.files)

    def is_final(self, until: str | None, settle_time: float) -> bool:
        """Return whether `until` was so many seconds ago when the source was asked: nothing before it is new."""
        try:
            end = datetime.fromisoformat(until or "")
        except ValueError:
            return False
        end = end if end.tzinfo else end.replace(tzinfo=UTC)
        return datetime.fromisoformat(self.manifest.started_at) - end >= timedelta(seconds=settle_time)

    def path_of(self, file: LandedFile) -> Path:
        """Return where the bytes of a file are."""
        return self.folder / file.name


class Receiver:
    """Writes the files of one landing while they are received."""

    def __init__(self, folder: Path, files: Iterable[LandedFile] = ()) -> None:
        self.folder = folder
        self.files = list(files)
        """The whole files, those of an interrupted attempt included."""
        self.landing: Landing
        """The complete landing, once all files are received."""

    def add(
        self,
        suffix: str,
        chunks: Iterable[bytes],
        *,
        origin: str,
        rows: int | None = None,
        inspect: Callable[[Path], tuple[int | None, dict[str, Any]]] | None = None,
    ) -> LandedFile:
        """Write the next file as its bytes come; it counts once it is whole.

        Args:
            suffix: what the file holds: ".json", ".csv.gz".
            chunks: its bytes; what is raised while they come leaves no file.
            origin: see `LandedFile`.
            rows: see `LandedFile`.
            inspect: is given the whole file, still under a temporary name, and returns its rows and details: see
                `LandedFile`. What it raises leaves no file.
        """
        digest, size = hashlib.sha256(), 0
        path = self.folder / f"{len(self.files) + 1:05}{suffix}"
        # Not synced: the checksum says when it is read whether it is as it was received.
        with writing(path, sync=False) as file:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            rows, details = inspect(Path(file.name)) if inspect else (rows, {})
        landed = LandedFile(
            name=path.name,
            origin=origin,
            received_at=_now(),
            size=size,
            checksum=digest.hexdigest(),
            rows=rows,
            details=details,
        )
        with (self.folder / _JOURNAL).open("ab") as journal:
            journal.write(json.dumps(asdict(landed)).encode() + b"\n")
        self.files.append(landed)
        return landed

    def restart(self) -> None:
        """Forget the files of an interrupted attempt: the source no longer continues where it ended."""
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        for file in self.files:
            (self.folder / file.name).unlink(missing_ok=True)
        self.files.clear()


@contextmanager
def receiving(root: Path, tool: str, table: str, window: Window, *, fingerprint: str) -> Iterator[Receiver]:
    """Receive the files of one window; when the block ends the landing is complete: see `find_landing`.

    If the block raises, the whole files stay, and the next attempt continues after them.

    Args:
        root: the folder of the lake.
        tool: the name of the tool.
        table: the name of the table.
        window: the window that is received.
        fingerprint: see `Manifest`; an interrupted landing with another one is not continued.
    """
    parent, started_at = _folder_of(root, tool, table, window), _now()
    with _claimed(parent, fingerprint) as folder:
        receiver = Receiver(folder, _read_journal(folder))
        if is_resumed := bool(receiver.files):
            log("%s/%s %s: continues after %d files that were received", tool, table, window.name, len(receiver.files))
        yield receiver
        manifest = Manifest(
            window=window,
            fingerprint=fingerprint,
            started_at=min([started_at, *(each.received_at for each in receiver.files)]),
            content=digest_of(*(each.checksum for each in receiver.files)),
            files=tuple(receiver.files),
        )
        with writing(folder / _MANIFEST, sync=False) as file:
            file.write(json.dumps(asdict(manifest), indent=1).encode())
        receiver.landing = Landing(folder=folder, manifest=manifest, is_new=not is_resumed)


def land_batches(
    table: ConfiguredTable, window: Window, asked: Any, batches: Iterable[pa.RecordBatch], origin: str
) -> Landing:
    """Land batches of text, a Parquet file each, for sources that give no bytes.

    Args:
        table: the table.
        window: the window.
        asked: what identifies the rows that were asked for, as JSON knows it.
        batches: the rows.
        origin: what they are of, for people.
    """
    fingerprint, done = digest_of(asked), 0
    with receiving(table.lake, table.tool_name, table.name, window, fingerprint=fingerprint) as receiver:
        receiver.restart()
        for batch in islice(batches, 1 if window.is_sample else None):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_batches([batch]), buffer, compression="zstd")
            receiver.add(".parquet", [buffer.getvalue()], origin=origin, rows=batch.num_rows)
            done += batch.num_rows
            progress(done, None, "rows")
    log("%s %s: %d rows", table, window.name, done)
    return receiver.landing


def find_landing(root: Path, tool: str, table: str, window: Window, fingerprint: str | None = None) -> Landing | None:
    """Return the newest complete landing of a window, None where a file of it is lost; `fingerprint` must match too."""
    known = _complete(_folder_of(root, tool, table, window))
    found = next((each for each in known if fingerprint in (None, each.manifest.fingerprint)), None)
    return found if found and all(each.is_in(found.folder) for each in found.files) else None


def landings_of(root: Path, tool: str, table: str, *, replaced: bool = False) -> list[Landing]:
    """Return the complete landings of a table that no newer one has taken the place of; `replaced`: those too."""
    windows = (root / "landing" / tool / table).glob("*/")
    return [landing for window in windows for landing in (_complete if replaced else _current)(window)]


def _complete(window: Path) -> Iterator[Landing]:
    """Yield the complete landings of a window, the newest first."""
    for folder in sorted(window.glob("*Z-*"), reverse=True):
        with explained(folder):
            found = read_landing(folder)
        if found is not None:
            yield found


def _current(window: Path) -> list[Landing]:
    """Return the complete landings of a window that are needed: the newest, and what it was not asked for."""
    current: list[Landing] = []
    for found in _complete(window):
        # One that was asked from a cursor on has none of the rows before, and one with an end none of those after.
        # Of a table with a cursor rows stay that are gone at the source: an older answer may be all that has them.
        asked, content = found.manifest.window, found.manifest.content
        newer = (each.manifest.window for each in current if asked.cursor is None or each.manifest.content == content)
        if not any(each.since in (None, asked.since) and each.until in (None, asked.until) for each in newer):
            current.append(found)
    return current


def unneeded(root: Path) -> Iterator[Path]:
    """Yield landings in whose place a newer one came, or that have no end, and what readers have left in the others.

    Those that were written to a moment ago may still be continued.
    """
    for window in root.glob("landing/*/*/*"):
        current = {each.folder for each in _current(window)}
        for folder in window.glob("*Z-*"):
            yield from folder.glob(f"{TEMPORARY}*") if folder in current else (folder,)


def read_landing(folder: Path) -> Landing | None:
    """Return the complete landing in a folder; None where it has no whole manifest."""
    # A power cut may leave an empty manifest.
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        found = json.loads((folder / _MANIFEST).read_bytes())
        found |= {"files": tuple(LandedFile(**each) for each in found["files"]), "window": Window(**found["window"])}
        return Landing(folder=folder, manifest=Manifest(**found))
    return None


def _folder_of(root: Path, tool: str, table: str, window: Window) -> Path:
    # A window can be any value of a column: "America/New_York" must not become two folders, nor ".." one up.
    return root / "landing" / tool / table / quote(window.name, safe="").replace(".", "%2E")


@contextmanager
def _claimed(parent: Path, fingerprint: str) -> Iterator[Path]:
    """Hold the lock on an interrupted landing that can be continued, or else on a new one."""
    kind = digest_of(fingerprint)[:8]
    job = running_job()
    named = None if job is None else job.checkpoint_value
    with ExitStack() as stack:
        for folder in sorted(parent.glob(f"*-{kind}"), reverse=True):
            journal = folder / _JOURNAL
            is_recent = journal.exists() and time.time() - journal.stat().st_mtime < RESUME_WITHIN
            if not (folder.name == named or is_recent):
                continue
            with suppress(DataCollectionException):  # LOCKED: another job is receiving it.
                stack.enter_context(locked(folder / ".lock", timeout=0))
                if not (folder / _MANIFEST).exists():
                    break
                stack.close()
        else:
            folder = parent / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z-{kind}"
            stack.enter_context(locked(folder / ".lock", timeout=0))
        if job is not None:
            job.checkpoint(folder.name)
        yield folder


def _read_journal(folder: Path) -> list[LandedFile]:
    """Return the whole files of an interrupted landing, up to the first that is not there as it was received."""
    files: list[LandedFile] = []
    journal = folder / _JOURNAL
    # A line may be cut off, where the process died or the disk was full; later ones may follow.
    with suppress(FileNotFoundError, ValueError):
        for line in journal.read_bytes().split(b"\n")[:-1]:
            file = LandedFile(**json.loads(line))
            if not file.is_in(folder):
                break
            files.append(file)
    return files


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
