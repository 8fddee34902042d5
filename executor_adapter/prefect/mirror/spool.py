"""Keeps on disk the final states that a process could not send before it ended, for the next process to send.

The files are in PREFECT_HOME/executor-adapter/spool, one event a line. Only their owner can read them, because states
contain error messages. A file that is being written or sent is locked, and the lock ends with its process: so each file
is sent by one process, and by another if that one dies. It is removed once the server has recorded all its events.
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
        lines, found = self._file.read().splitlines(), []
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                found.append(StateEvent.parse(line, spool_file=self))
        if len(found) < len(lines):
            invalid = len(lines) - len(found)
            logger.warning("skipping %d of %d lines in %s: they are not states", invalid, len(lines), self._path)
        self._unrecorded = len(found)
        if not found:
            self._remove()
        return found

    def mark_recorded(self) -> None:
        """Count one event as recorded, and remove the file after its last one."""
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
        self._directory = directory or get_current_settings().home / "executor-adapter" / "spool"
        self._prefix = hashlib.sha256(server.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes

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
        ids: list[str] = []
        left, kept = _not_yet_spooled(events, ids), 0
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = _fitting(left, self._max_bytes - sum(map(_size, self._paths())))
            while part := list(itertools.islice(lines, MAX_FILE_EVENTS)):
                self._write(part)
                kept += len(part)
        except OSError:
            logger.exception("cannot write final states to %s", self._directory)
        for _ in left:  # Collects the ids of the jobs that are not kept.
            pass
        return tuple(ids[:kept]), tuple(ids[kept:])

    def _write(self, lines: list[bytes]) -> None:
        path = self._directory / f"{self._prefix}-{uuid7()}.new"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            path.rename(path.with_suffix(".jsonl"))  # Only a locked file may be found: others remove an empty one.
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def claim(self) -> Iterator[SpoolFile]:
        """Yield the files that no living process holds, the oldest first, each locked when it is yielded."""
        for path in self._paths():
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
        return sorted(self._directory.glob(f"{self._prefix}-*.jsonl"))


def _not_yet_spooled(events: Iterable[StateEvent], ids: list[str]) -> Iterator[StateEvent]:
    """Yield the events that are not on disk, and append their jobs' ids to `ids`. Release the files of the others."""
    for event in events:
        if event.spool_file is None:
            ids.append(event.job_id)
            yield event
        else:
            event.spool_file.release()


def _fitting(events: Iterable[StateEvent], room: int) -> Iterator[bytes]:
    """Yield the lines of the first events, up to `room` bytes."""
    for event in events:
        room -= len(event.body) + 1
        if room < 0:
            return
        yield event.body + b"\n"


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # Another process may have sent and removed it.
        return path.stat().st_size
    return 0
