"""The outbox: the events that wait to be sent and are not in memory alone, in a file that outlives the process.

The file is an SQLite database in PREFECT_HOME/executor-adapter, one for all processes and servers. Only its owner can
read it, because states contain error messages. It has a row for each event until the server has recorded the event, so
a process that is killed at any moment leaves what it has not seen recorded. An event that is sent twice does no harm:
the server inserts a state once by its id. The deaths of processes that no reporter could report wait there, too: the
ids of their flow runs, neither addresses nor credentials.

Each row belongs to the mirror that has written it or taken it over. Such a mirror has a lock file, whose lock ends with
its process. Rows of a mirror that has been closed, or is dead, are taken over by the next one that asks.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from prefect.settings import get_current_settings

from executor_adapter.job import uuid7
from executor_adapter.prefect.mirror.events import StateEvent

logger = logging.getLogger("executor_adapter.prefect")

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Size of the file: some 150,000 states."""

PAGE_BYTES = 4096
"""SQLite's own default."""

MAX_TRANSACTION_EVENTS = 1_000
"""Events that are written at once: about a megabyte, and for so long a caller waits who closes the mirror."""

BUSY_TIMEOUT = 15.0
"""Seconds to wait for the transactions of other processes: many may leave their states here at once, as a host ends."""
BRIEF_BUSY_TIMEOUT = 0.1
"""Seconds to wait for them while the mirror runs: it comes again, and what it sends must not wait for the file."""
BUSY_INTERVAL = 0.01

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, server TEXT, owner TEXT, is_held INTEGER, task_run_id TEXT, name BLOB,
    at REAL, is_final INTEGER, body BLOB, job_id BLOB, flow_run_id TEXT
)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS event_of_owner ON event (server, owner, is_held)"
_DEATHS = "CREATE TABLE IF NOT EXISTS death (number INTEGER PRIMARY KEY AUTOINCREMENT, server TEXT, body TEXT)"
_ROW = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_HOLD = """
UPDATE event SET owner = ?, is_held = 1 WHERE number IN (
    SELECT number FROM event WHERE server = ? AND owner = ? AND is_held = 0 ORDER BY number LIMIT ?
) RETURNING number, task_run_id, name, at, is_final, body, job_id, flow_run_id
"""

_file_lock = threading.Lock()
"""Held while the file is open. No process is forked then: connections, and locks of files, must not be inherited."""

os.register_at_fork(before=_file_lock.acquire, after_in_parent=_file_lock.release, after_in_child=_file_lock.release)


class OutboxFile:
    """One mirror's view of the file: its own rows, and those that nobody owns, for one server.

    `server` is the server's name; `path` is by default below PREFECT_HOME.

    Raises, from each of its methods:
        OSError, sqlite3.Error: the disk is full, or the file cannot be used.
    """

    def __init__(self, server: str, path: Path | None = None, max_bytes: int = MAX_FILE_BYTES) -> None:
        self.path = path or get_current_settings().home / "executor-adapter" / "outbox.db"
        self._server = hashlib.sha256(server.encode()).hexdigest()[:16]
        self._max_pages = max_bytes // PAGE_BYTES
        self._owner = uuid7()
        self.busy_timeout = BUSY_TIMEOUT
        """Seconds for which a method waits for the transactions of other processes."""
        self._lock: BinaryIO | None = None
        """Held from the first row on; open until `release`, or until the process ends."""

    def count(self) -> int:
        """Return the number of events for this server, whoever owns them."""
        if not self.path.exists():
            return 0
        with self._transaction() as database:
            (found,) = database.execute("SELECT count(*) FROM event WHERE server = ?", (self._server,)).fetchone()
        return int(found)

    def write(self, events: list[StateEvent], *, is_held: bool) -> int:
        """Write events, or write them anew where they have changed; return how many. `is_held`: memory has them too."""
        self._hold_lock()
        events, values = sorted(events, key=lambda each: each.row is None), list[Any]()
        for each in events:
            name, job_id = _encoded(each.name), _encoded(each.job_id)
            values += each.row, self._server, self._owner, is_held, each.task_run_id, name, each.at, each.is_final
            values += each.body, job_id, each.flow_run_id
        # One statement: at each Python lets another thread go on, and where engines compute it comes back much later.
        insert = f"INSERT OR REPLACE INTO event VALUES {', '.join([_ROW] * len(events))}"
        with self._transaction() as database:
            last = database.execute(insert, values).lastrowid or 0
        for number, each in enumerate(events, last - len(events) + 1):  # Those that are new are numbered in turn.
            each.row = each.row or number
        return len(events)

    def take(self, limit: int) -> list[StateEvent]:
        """Return own events that are in the file alone, the oldest first. They stay in the file too."""
        with self._transaction() as database:
            return self._held(database, self._owner, limit)

    def take_over(self, limit: int) -> list[StateEvent]:
        """Return events that no living mirror owns, the oldest first. They are this mirror's from now on."""
        if not self.path.exists():
            return []
        self._hold_lock()
        with self._transaction() as database:
            self._free_dead(database)
            found = self._held(database, "", limit)
        for each in found:
            each.is_inherited = True
        return found

    def delete(self, rows: Iterable[int]) -> int:
        """Delete events, because the server has recorded them or never will; return how many there were."""
        with self._transaction() as database:
            query = "DELETE FROM event WHERE number IN (SELECT value FROM json_each(?))"
            return database.execute(query, (json.dumps([*rows]),)).rowcount

    def job_ids(self) -> list[str]:
        """Return the jobs whose final states are in the file alone, and are this mirror's."""
        with self._transaction() as database:
            query = "SELECT job_id FROM event WHERE owner = ? AND NOT is_held AND is_final ORDER BY number"
            return [_decoded(job_id) for (job_id,) in database.execute(query, (self._owner,))]

    def release(self) -> None:
        """Leave all rows to the next mirror."""
        if self._lock is not None:
            try:
                with self._transaction() as database:
                    _free(database, self._owner)
                self._lock_path(self._owner).unlink(missing_ok=True)
            finally:
                self.drop_lock()

    def drop_lock(self) -> None:
        """Drop the lock, as a forked child must: it would hold it for as long as it lives."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def delete_old(self, oldest: float) -> int:
        """Delete the events of before the time `oldest` that no living mirror owns, for all servers; return how many.

        `oldest` is in seconds since the epoch.
        """
        if not self.path.exists():
            return 0
        with self._transaction() as database:
            self._free_dead(database)
            deleted = database.execute("DELETE FROM event WHERE owner = '' AND at < ?", (oldest,)).rowcount
        for lock in self.path.parent.glob(f"{self.path.stem}-*.lock"):
            with contextlib.suppress(OSError):
                if lock.stat().st_mtime < oldest and _is_free(lock):
                    lock.unlink()
        return deleted

    # --- deaths of processes, as JSON, until a sweep has reported them ---

    def keep_death(self, body: str) -> None:
        """Keep a death, also where the file is full of events."""
        with self._transaction() as database:
            database.execute(f"PRAGMA max_page_count = {2 * self._max_pages}")
            database.execute("INSERT INTO death (server, body) VALUES (?, ?)", (self._server, body))

    def deaths(self) -> dict[int, str]:
        """Return the deaths that this server does not know of, by number, the oldest first."""
        if not self.path.exists():
            return {}
        with self._transaction() as database:
            query = "SELECT number, body FROM death WHERE server = ? ORDER BY number"
            return dict(database.execute(query, (self._server,)).fetchall())

    def delete_death(self, number: int) -> None:
        """Delete a death that is reported. Two processes may report it at once: they send the same."""
        with self._transaction() as database:
            database.execute("DELETE FROM death WHERE number = ?", (number,))

    def _held(self, database: sqlite3.Connection, owner: str, limit: int) -> list[StateEvent]:
        rows = sorted(database.execute(_HOLD, (self._owner, self._server, owner, limit)).fetchall())
        return [
            StateEvent(run, _decoded(name), at, bool(final), body, _decoded(job), row=number, flow_run_id=flow_run)
            for number, run, name, at, final, body, job, flow_run in rows
        ]

    def _free_dead(self, database: sqlite3.Connection) -> None:
        query = "SELECT DISTINCT owner FROM event WHERE owner NOT IN ('', ?)"
        for (owner,) in database.execute(query, (self._owner,)).fetchall():
            if _is_free(self._lock_path(owner)):
                _free(database, owner)
                self._lock_path(owner).unlink(missing_ok=True)

    def _hold_lock(self) -> None:
        # Nobody looks for a lock before there are rows of its owner.
        if self._lock is None:
            self._create_directory()
            file = os.fdopen(os.open(self._lock_path(self._owner), os.O_WRONLY | os.O_CREAT, 0o600), "wb")
            fcntl.flock(file, fcntl.LOCK_EX)
            self._lock = file

    def _lock_path(self, owner: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{owner}.lock")

    def _create_directory(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction. So no connection is shared, with a thread or a forked process."""
        until = time.monotonic() + self.busy_timeout
        while True:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_file_lock)
                try:
                    database = self._begin(stack)
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() > until:
                        raise
                else:
                    yield database
                    database.execute("COMMIT")
                    return
            time.sleep(BUSY_INTERVAL)  # Others may fork meanwhile.

    def _begin(self, stack: contextlib.ExitStack) -> sqlite3.Connection:
        """Open the file until `stack` is closed, and begin a transaction that writes, if no other process is in one."""
        self._create_directory()
        with contextlib.suppress(FileExistsError):  # Not opened then: closing it would drop SQLite's own locks.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        database = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        stack.callback(database.close)
        bound = f"PRAGMA max_page_count = {self._max_pages}"
        for statement in ("PRAGMA journal_mode = WAL", bound, "BEGIN IMMEDIATE", _SCHEMA, _INDEX, _DEATHS):
            database.execute(statement)
        return database


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # It may have half a surrogate pair, which SQLite refuses.


def _decoded(stored: bytes) -> str:
    return stored.decode(errors="surrogatepass")


def _free(database: sqlite3.Connection, owner: str) -> None:
    database.execute("UPDATE event SET owner = '', is_held = 0 WHERE owner = ?", (owner,))


def _is_free(lock: Path) -> bool:
    """Return whether the mirror with this lock file is dead."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # It is locked, or cannot be looked into.
        return isinstance(error, FileNotFoundError)
    return True


class Outbox:
    """The file, as the thread of a mirror uses it. One that cannot be used is logged once, and leaves all in memory."""

    def __init__(self) -> None:
        self.file: OutboxFile
        """Set by `open`, before the first event."""
        self.is_heir = False
        """Whether the file may hold events that others have left."""
        self.stored = 0
        """Final states of this mirror that are in the file alone. Each is behind those that its job passed through."""
        self.over: list[int] = []
        """Rows of events that are recorded, or never will be, and are still to be deleted."""
        self.lost = 0
        """Final states that neither the server nor the disk took, or that the disk has lost."""
        self.has_failed = False
        """Whether the file could not be used last time, and this was said."""
        self._failing_since: float | None = None
        """The monotonic time of the first of the failures since the file could last be used."""
        self.is_closed = False
        """Whether all that is in the file is the next mirror's."""

    def open(self, file: OutboxFile) -> None:
        """Use the file from now on."""
        self.file = file
        file.busy_timeout = BRIEF_BUSY_TIMEOUT
        self.is_heir = self._tries(file.count) != 0

    def take(self, limit: int) -> list[StateEvent]:
        """Return the oldest events of this mirror that are in the file alone."""
        events: list[StateEvent] | None = self._tries(self.file.take, limit)
        if events == []:
            logger.error("%s has lost %d final states: it was changed", self.file.path, self.stored)
            self.lost, self.stored = self.lost + self.stored, 0
        self.stored -= sum(event.is_final for event in events or ())
        return events or []

    def take_over(self, limit: int) -> list[StateEvent]:
        """Return events that another mirror has left."""
        events: list[StateEvent] = self._tries(self.file.take_over, limit) or []
        self.is_heir = bool(events) or self._failing_since is not None
        return events

    def back_up(self, events: Iterable[StateEvent]) -> None:
        """Write events that stay in memory too.

        Not once it is closed: a request that was under way then would make them a mirror's again that is no more.
        """
        if not self.is_closed:
            self._write(events, is_held=True)

    def store(self, events: list[StateEvent]) -> bool:
        """Write events that then need not stay in memory; return whether they are in the file."""
        if is_stored := self._write(events, is_held=False):
            self.stored += sum(event.is_final for event in events)
        return is_stored

    def delete_ended(self) -> None:
        """Delete the events that are over."""
        if self.over and self._tries(self.file.delete, self.over) is not None:
            self.over = []

    def job_ids(self) -> list[str]:
        """Return the jobs of this mirror whose final states are in the file alone."""
        return self._tries(self.file.job_ids) or [] if self.stored else []

    def close(self, finals: Iterable[StateEvent]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Leave final states, and what is in the file already, to the next mirror.

        Returns the ids of the jobs of this mirror that are kept so, and of those that are not.
        """
        self.file.busy_timeout = BUSY_TIMEOUT
        self.delete_ended()
        ids: dict[bool, list[str]] = {True: self.job_ids(), False: []}
        self.lost += max(0, self.stored - len(ids[True]))
        left, until = iter(finals), time.monotonic() + BUSY_TIMEOUT
        while part := list(itertools.islice(left, MAX_TRANSACTION_EVENTS)):
            # A full disk may take a smaller part; a file that others hold is not waited for again and again.
            if not self.has_failed or time.monotonic() < until:
                self._write([each for each in part if each.row is None], is_held=False)
            for each in part:
                if not each.is_inherited:
                    ids[each.row is not None].append(each.job_id)
        self._tries(self.file.release)
        self.stored, self.is_heir, self.is_closed = 0, False, True
        return tuple(ids[True]), tuple(ids[False])

    def _write(self, events: Iterable[StateEvent], *, is_held: bool) -> bool:
        left = iter(events)
        while part := list(itertools.islice(left, MAX_TRANSACTION_EVENTS)):
            if self._tries(functools.partial(self.file.write, is_held=is_held), part) is None:
                return False
            self.has_failed = False
        return True

    def _tries(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return `work(*args)`; None if the file cannot be used, which is logged once, or if others hold it long."""
        try:
            done = work(*args)
        except Exception as error:  # Whatever it is, the events are still in memory.
            self._failing_since = self._failing_since or time.monotonic()
            waited = time.monotonic() - self._failing_since + self.file.busy_timeout
            if not self.has_failed and (waited >= BUSY_TIMEOUT or not _is_busy(error)):
                self.has_failed = True
                logger.error("cannot use %s for final states that the server does not take: %s", self.file.path, error)
            return None
        self._failing_since = None
        return done
