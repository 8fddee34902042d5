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
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from prefect.settings import get_current_settings

from executor_adapter.job import uuid7
from executor_adapter.prefect.state_events import StateEvent

MAX_BYTES = 256 * 1024 * 1024
"""All files for one server together: some 200,000 states."""

FILE_EVENTS = 1_000
"""Events in one file, at most: it is read as a whole, and sent again as a whole where its sender died."""


class SpoolFile:
    """One file, locked by this process; gone once each of its events is recorded."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = 0

    def events(self) -> list[StateEvent]:
        """What it holds, but for a last line that was cut off."""
        self._file.seek(0)
        found = []
        for line in self._file:
            with contextlib.suppress(ValueError, KeyError):
                found.append(StateEvent.parse(line.rstrip(b"\n"), origin=self))
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

    def keep(self, events: Iterable[StateEvent]) -> int:
        """Write events down, the first ones first; how many there was room for.

        Raises:
            OSError: the disk is full or not to be written to.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines, kept = _fitting(events, self._max_bytes - sum(map(_size, self._paths()))), 0
        while part := list(itertools.islice(lines, FILE_EVENTS)):
            self._write(part)
            kept += len(part)
        return kept

    def _write(self, lines: list[bytes]) -> None:
        path = self._directory / f"{self._prefix}-{uuid7()}.jsonl"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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
