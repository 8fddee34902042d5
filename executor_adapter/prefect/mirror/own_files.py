"""The spool files of a mirror that is alive: what it cannot send now leaves its memory, and outlives its process.

While the server is away, or far behind, the states of finished jobs are written to files, which the mirror reads and
sends later. If its process is killed meanwhile, the next one for this server sends them. One lock file keeps others
from all of them while the mirror lives, because a lock on each file would take a descriptor.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from executor_adapter.job import uuid7
from executor_adapter.prefect.mirror.spool import MAX_FILE_EVENTS, Spool, read_events
from executor_adapter.prefect.mirror.state_events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")


class OwnFile:
    """One file of this mirror. It is removed once all final states in it are recorded."""

    def __init__(self, path: Path, unrecorded: int) -> None:
        self.path = path
        self.unrecorded = unrecorded

    def mark_recorded(self) -> None:
        """Count one final state of the file as recorded, and remove the file after its last one."""
        self.unrecorded -= 1
        if not self.unrecorded:
            self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Leave the file as it is: `OwnFiles.close` leaves all of them to other processes."""


class OwnFiles:
    """The files of one mirror. For one thread at a time."""

    def __init__(self, spool: Spool) -> None:
        self.lost = 0
        """Final states in files that could not be read again."""
        self._spool = spool
        self._owner = uuid7()
        self.lock: BinaryIO | None = None
        """Held from the first file on; open until `close`, or until the process ends."""
        self._unread: deque[OwnFile] = deque()
        """The files whose events are on disk alone."""
        self.has_failed = False
        """Whether the last write has failed."""

    def __bool__(self) -> bool:
        """Whether events are on disk alone."""
        return bool(self._unread)

    def back_up(self, events: list[StateEvent]) -> bool:
        """Write events that stay in memory too; return whether they are on disk."""
        for start in range(0, len(events), MAX_FILE_EVENTS):
            part = events[start : start + MAX_FILE_EVENTS]
            file = self._write(part)
            if file is None:
                return False
            for event in part:
                event.backup = file
        return True

    def store(self, events: list[StateEvent]) -> bool:
        """Write events that then need not stay in memory; return whether they are on disk."""
        file = self._write(events)
        if file is not None:
            self._unread.append(file)
        return file is not None

    def _write(self, events: list[StateEvent]) -> OwnFile | None:
        lines = [event.line for event in events]
        try:
            if self.lock is None:
                self.lock = self._spool.hold(self._owner)
            if sum(map(len, lines)) > self._spool.room():
                raise OSError(f"the spool is full: {self._spool.max_bytes:,} bytes")
            path = self._spool.write(lines, self._owner)
        except OSError as error:
            if not self.has_failed:
                logger.error(
                    "cannot write final states to %s, so they stay in memory: %s", self._spool.directory, error
                )
            self.has_failed = True
            return None
        self.has_failed = False
        return OwnFile(path, sum(event.is_final for event in events))

    def take(self) -> list[StateEvent]:
        """Return the events of the oldest file that is on disk alone. It stays there until they are recorded."""
        file = self._unread.popleft()
        events = read_events(_content(file), file.path)
        for event in events:
            event.backup = file
        finals = sum(event.is_final for event in events)
        if finals < file.unrecorded:
            logger.error("%s has lost %d final states: it was changed", file.path, file.unrecorded - finals)
            self.lost += file.unrecorded - finals
            file.unrecorded = finals
        return events

    def job_ids(self) -> Iterator[str]:
        """Yield the jobs whose final states are on disk alone."""
        for file in self._unread:
            for line in _content(file).splitlines():
                with contextlib.suppress(ValueError):  # The file was changed.
                    if (job_id := json.loads(line.partition(b"\t")[0])) is not None:
                        yield job_id

    def close(self) -> None:
        """Leave the files to the next process."""
        if self.lock is not None:
            try:
                self._spool.disown(self._owner)
            except OSError as error:  # The next process does the rest.
                logger.error("cannot release all files in %s: %s", self._spool.directory, error)
            self.lock.close()
            self.lock = None


def _content(file: OwnFile) -> bytes:
    try:
        return file.path.read_bytes()
    except OSError as error:
        logger.error("cannot read %s: %s", file.path, error)
        return b""
