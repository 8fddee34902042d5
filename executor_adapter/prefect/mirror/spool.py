"""Keeps on disk the final states that a process could not send, for the next process to send.

The files are in PREFECT_HOME/executor-adapter/spool, one event a line. Only their owner can read them, because states
contain error messages. A file that is being written or sent is locked, and the lock ends with its process: so each file
is sent by one process, and by another if that one dies. It is removed once the server has recorded all its events.

A mirror that is alive has files of its own (`own_files.py`), whose names contain its owner id. They are protected by
the lock of its file `*.lock`, and are like all others once that lock is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from prefect.settings import get_current_settings

from executor_adapter.job import uuid7
from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MAX_SPOOL_BYTES = 256 * 1024 * 1024
"""Size of all files for one server: some 200,000 states."""

MAX_FILE_EVENTS = 200
"""Events in one file: as many as a slow server records in the few seconds for which a small flow waits.

A file is read whole, and sent again whole if its sender ends before all its events are recorded.
"""


class SpoolFile:
    """One file, locked by this process. It is removed once all its events are recorded."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._unrecorded = 0

    def events(self) -> list[StateEvent]:
        """Read the events. Lines that are not states, for example one that was cut off, are skipped with a warning."""
        self._file.seek(0)
        found = read_events(self._file.read(), self._path)
        for event in found:
            event.spool_file = self
        self._unrecorded = sum(event.is_final for event in found)
        if not self._unrecorded:
            self._remove()
        return found

    def mark_recorded(self) -> None:
        """Count one final state as recorded, and remove the file after its last one."""
        self._unrecorded -= 1
        if not self._unrecorded:
            self._remove()

    def release(self) -> None:
        """Leave the file, with all its events, to another process."""
        self._file.close()

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


class Spool:
    """The spool files for one server.

    `server` is its name; `directory` is by default the one below PREFECT_HOME.
    """

    def __init__(self, server: str, directory: Path | None = None, max_bytes: int = MAX_SPOOL_BYTES) -> None:
        self.directory = directory or get_current_settings().home / "executor-adapter" / "spool"
        self.max_bytes = max_bytes
        self._prefix = hashlib.sha256(server.encode()).hexdigest()[:16]

    @property
    def is_empty(self) -> bool:
        """Whether no file for this server exists, locked or not."""
        return not self._paths()

    def keep(self, events: Iterable[StateEvent]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write events to disk in their order, as long as there is room.

        Returns the ids of the jobs that are kept, and of those that are not: because the spool is full, or because the
        disk is full or cannot be written to, which is logged. Events that were read from the spool are in their file
        already; it is released.
        """
        on_disk: list[str] = []
        ids: list[str] = []
        left, kept = _not_yet_spooled(events, on_disk, ids), 0
        try:
            lines = _fitting(left, self.room())
            while part := list(itertools.islice(lines, MAX_FILE_EVENTS)):
                self.write(part)
                kept += len(part)
        except OSError:
            logger.exception("cannot write final states to %s", self.directory)
        for _ in left:  # Collects the ids of the jobs that are not kept.
            pass
        return (*on_disk, *ids[:kept]), tuple(ids[kept:])

    def room(self) -> int:
        """Return how many bytes may still be written."""
        return self.max_bytes - sum(map(_size, self._paths()))

    def write(self, lines: list[bytes], owner: str = "") -> Path:
        """Write a file, for anyone to claim or for an owner whose lock the caller holds, and return its path.

        Raises:
            OSError: the disk is full, or cannot be written to; no file is left.
        """
        path = self.directory / f"{self._prefix}-{uuid7()}{owner and f'.{owner}'}.jsonl"
        with self._create(path) as file:
            try:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return path

    def _create(self, path: Path) -> BinaryIO:
        """Create a file, locked. Only a locked one may be found by its name: others remove an empty one."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        file = os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(path)
        except BaseException:
            file.close()
            new.unlink(missing_ok=True)
            raise
        return file

    def hold(self, owner: str) -> BinaryIO:
        """Return the lock of an owner's files: nobody else claims them while it is open."""
        return self._create(self._lock_path(owner))

    def disown(self, owner: str) -> None:
        """Leave an owner's files to whoever claims them. The caller holds their lock."""
        for path in self.directory.glob(f"{self._prefix}-*.{owner}.jsonl"):
            path.rename(path.with_name(path.name.replace(f".{owner}", "")))
        self._lock_path(owner).unlink(missing_ok=True)

    def _lock_path(self, owner: str) -> Path:
        return self.directory / f"{self._prefix}.{owner}.lock"

    def _disown_dead(self) -> None:
        for path in self.directory.glob(f"{self._prefix}.*.lock"):
            with contextlib.suppress(OSError), path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Fails while the owner lives.
                self.disown(path.name.split(".")[1])

    def claim(self) -> Iterator[SpoolFile]:
        """Yield the files that no living process holds, the oldest first, each locked when it is yielded."""
        self._disown_dead()
        for path in self._paths():
            if len(path.suffixes) > 1:  # Its owner lives.
                continue
            with contextlib.suppress(OSError):
                file = path.open("rb")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BaseException:
                    file.close()
                    raise
                if path.exists():  # Else another process has sent and removed it.
                    yield SpoolFile(path, file)
                else:
                    file.close()

    def _paths(self) -> list[Path]:
        return sorted(self.directory.glob(f"{self._prefix}-*.jsonl"))


def read_events(content: bytes, path: Path) -> list[StateEvent]:
    """Read the events of a file. Lines that are not states are skipped with a warning."""
    lines, found = content.splitlines(), []
    for line in lines:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            found.append(StateEvent.parse(line))
    if len(found) < len(lines):
        invalid = len(lines) - len(found)
        logger.warning("skipping %d of %d lines in %s: they are not states", invalid, len(lines), path)
    return found


def _not_yet_spooled(events: Iterable[StateEvent], on_disk: list[str], ids: list[str]) -> Iterator[StateEvent]:
    """Yield the events that are not on disk, and append their jobs' ids to `ids`, and those of the others to `on_disk`.

    Files that another process wrote are released, and their events have no job of this process.
    """
    for event in events:
        if event.spool_file is not None:
            event.spool_file.release()
        elif event.backup is not None:
            on_disk.append(event.job_id)
        else:
            ids.append(event.job_id)
            yield event


def _fitting(events: Iterable[StateEvent], room: int) -> Iterator[bytes]:
    """Yield the lines of the first events, up to `room` bytes."""
    for event in events:
        line = event.line
        room -= len(line)
        if room < 0:
            return
        yield line


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # Another process may have sent and removed it.
        return path.stat().st_size
    return 0
