"""Final states that a process could not bring to its server before it had to end, kept on disk for the next one.

Files in PREFECT_HOME/executor-adapter/spool, for the owner's eyes alone, since states carry messages of errors; one
event a line. A file that is being written or sent is locked, by a lock that ends with its process: so each is sent by
one process, and by another if that dies. It is removed once all that it holds is recorded.
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

from executor_adapter.job.ids import uuid7
from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MAX_BYTES = 256 * 1024 * 1024
"""All files for one server together: some 200,000 states."""

FILE_EVENTS = 200
"""Events in one file, at most: what a slow server records in the few seconds that a small flow has for it. It is read
as a whole, and sent again as a whole where its sender did not come to its end."""


class SpoolFile:
    """One file, locked by this process; gone once each of its events is recorded."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = 0

    def events(self) -> list[StateEvent]:
        """What it holds, but for lines that are no states, as one that was cut off: that there are such is logged."""
        self._file.seek(0)
        lines, found = self._file.read().splitlines(), []
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
                found.append(StateEvent.parse(line, origin=self))
        if len(found) < len(lines):
            logger.warning("%d of %d lines in %s are no states", len(lines) - len(found), len(lines), self._path)
        self._left = len(found)
        if not found:
            self._remove()
        return found

    def recorded(self) -> None:
        """One of its events is."""
        self._left -= 1
        if not self._left:
            self._remove()

    def release(self) -> None:
        """Leave it to another process, with all that it holds."""
        self._file.close()

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._file.close()


class Spool:
    """The files for one server. `server`: its name; `directory`: None for the one below PREFECT_HOME."""

    def __init__(self, server: str, directory: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._directory = directory or get_current_settings().home / "executor-adapter" / "spool"
        self._prefix = hashlib.sha256(server.encode()).hexdigest()[:16]
        self._max_bytes = max_bytes

    @property
    def is_empty(self) -> bool:
        """Whether there is no file for this server, claimed or not."""
        return not self._paths()

    def keep(self, events: Iterable[StateEvent]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write events down, the first ones first: the ids of the jobs that are kept, and of those that are not, as
        there is no room, or the disk is full or not to be written to, which is logged. Those that were read from here
        are left to the next who claims their file."""
        ids: list[str] = []
        left, kept = _new(events, ids), 0
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = _fitting(left, self._max_bytes - sum(map(_size, self._paths())))
            while part := list(itertools.islice(lines, FILE_EVENTS)):
                self._write(part)
                kept += len(part)
        except OSError:
            logger.exception("final states could not be written to disk")
        for _ in left:  # the others have names too
            pass
        return tuple(ids[:kept]), tuple(ids[kept:])

    def _write(self, lines: list[bytes]) -> None:
        path = self._directory / f"{self._prefix}-{uuid7()}.new"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            path.rename(path.with_suffix(".jsonl"))  # only now may others find it: an empty one they would remove
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def claim(self) -> Iterator[SpoolFile]:
        """The files that no living process holds, the oldest first, each locked by this one when it is given."""
        for path in self._paths():
            with contextlib.suppress(OSError):
                file = path.open("rb")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BaseException:
                    file.close()
                    raise
                if path.exists():  # else another process has sent it since
                    yield SpoolFile(path, file)
                else:
                    file.close()

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(f"{self._prefix}-*.jsonl"))


def _new(events: Iterable[StateEvent], ids: list[str]) -> Iterator[StateEvent]:
    """Those that are not on disk, which are released; the ids of their jobs are written down as they pass."""
    for event in events:
        if event.origin is None:
            ids.append(event.job_id)
            yield event
        else:
            event.origin.release()


def _fitting(events: Iterable[StateEvent], room: int) -> Iterator[bytes]:
    """The lines of the first events that there is room for."""
    for event in events:
        room -= len(event.body) + 1
        if room < 0:
            return
        yield event.body + b"\n"


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # sent since, and removed
        return path.stat().st_size
    return 0
