"""Engines for SQLite and PostgreSQL: how connections are set up, and which errors mean that the store is down."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, InterfaceError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store.base import StoreUnavailableError

BUSY_TIMEOUT = 5.0
"""Seconds that a write waits for the locks of others before the store counts as unavailable."""
BUSY_INTERVAL = 0.002
"""Seconds between the tries to begin a write. SQLite's own grow to 100 ms, in which others would write many times."""
CHECKPOINT_PAGES = 2000
"""Pages in SQLite's write-ahead log past which a commit moves them to the file and waits for the disk. A transaction
takes another number from the execution option `checkpoint_pages`: with fewer pages, transactions that may wait do the
checkpoint before those that may not."""
SILENCE_TIMEOUT = 15
"""Seconds after which a server whose machine does not answer counts as unavailable; Linux itself waits 15 minutes."""
IDLE_TRANSACTION_TIMEOUT = 30.0
"""Seconds that a program may be idle within a transaction before PostgreSQL ends it."""
SECRET_PARAMETERS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Parameters in the query of a PostgreSQL URL that must not be shown."""


def make_engine(url: str) -> Engine:
    """Return an engine for the database at `url`.

    Raises:
        ConfigurationError: the URL is not valid, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # The message does not quote the URL, because a password may be in it.
        raise ConfigurationError(
            "store.url: it is not a valid URL: write it as postgresql://user@host:port/database"
        ) from None
    if "@" in (parsed.host or ""):  # Part of a password would be shown as part of the host.
        raise ConfigurationError("store.url: the user or password has an @ in it: write it as %40")
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Leave all connections to the parent, in a forked process: use none of them and close none.

    Even sqlite3_close() of an inherited connection may corrupt the file, see "How To Corrupt An SQLite Database File",
    2.6. One more reference keeps the pool, and with it the connections, alive until after the interpreter's exit.
    """
    for engine in _engines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine.pool))
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_leave_to_parent)


def _sqlite(url: URL) -> Engine:
    if url.host is not None:
        raise ConfigurationError(f"store.url: 'sqlite://{url.host}' has two slashes: give 'sqlite:///{url.host}'")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("store.url: 'sqlite://' does not name a file: give 'sqlite:///jobs.db', or 'memory:'")
    directory = Path(url.database).absolute().parent
    if not directory.is_dir():
        raise ConfigurationError(f"store.url: {directory} is not a directory: create it, or name another file")
    _create_private(url.database)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT}, hide_parameters=True)
    _watch_file(engine, Path(url.database).absolute())
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _watch_file(engine: Engine, path: Path) -> None:
    """Notice that the database's file is deleted or replaced: SQLite would go on in the file that has no name any more.

    Raises, from then on:
        StoreUnavailableError: the file is not there, or is another one than the connection's.
    """
    if _identity(path) is None:
        return  # The name is one that SQLite alone understands.

    def open_file(connection: sqlite3.Connection, record: Any) -> None:
        record.info["file"] = _identity(path)

    def require_file(*_: Any) -> None:
        if _identity(path) is None:  # A connection would make an empty one.
            raise StoreUnavailableError(f"{path} was deleted: put it back, or start the program again with a new store")

    def require_same_file(connection: Connection) -> None:
        require_file()
        if connection.connection.info.get("file") != _identity(path):
            connection.invalidate()  # The next one opens the new file.
            raise StoreUnavailableError(f"{path} was replaced by another file while it was open")

    event.listen(engine, "do_connect", require_file)
    event.listen(engine, "connect", open_file)
    event.listen(engine, "begin", require_same_file)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create_private(path: str) -> None:
    """Create the file for its owner alone, unless it exists: it holds arguments. Its log files get the same mode.

    An existing file is not opened: closing any descriptor of a file drops all locks that this process has on it, see
    "How To Corrupt An SQLite Database File", 2.2. Another program would then take itself for the last one, and delete
    the log that this one writes to.
    """
    path = os.path.realpath(path)
    with contextlib.suppress(OSError):  # It exists, or SQLite says what is wrong.
        if sys.platform == "linux":
            os.mknod(path, 0o600)  # Not even the new file is opened: another thread may use it already.
        else:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # Transactions begin in `_begin_sqlite`, and not where the driver would.
    # Readers and the writer do not wait for one another.
    _execute_when_free(connection, "PRAGMA journal_mode = WAL", BUSY_TIMEOUT)
    connection.execute("PRAGMA synchronous = NORMAL")  # A commit survives the process; a power cut may undo it.


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("writes", False):
        connection.exec_driver_sql("BEGIN")
        return
    # A transaction that will write takes the lock at once: of two that read first and then write, SQLite refuses one
    # instead of letting it wait.
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA wal_autocheckpoint = {options.get('checkpoint_pages', CHECKPOINT_PAGES)}")
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        _execute_when_free(driver, "BEGIN IMMEDIATE", options.get("busy_timeout", BUSY_TIMEOUT))
    finally:
        driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")


def _execute_when_free(connection: sqlite3.Connection, statement: str, timeout: float) -> None:
    """Wait for the locks of others. SQLite itself looks ever more seldom, and does not wait to give a file its log."""
    until = time.monotonic() + timeout
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(BUSY_INTERVAL)


def _postgresql(url: URL) -> Engine:
    probes = {
        "keepalives_idle": SILENCE_TIMEOUT // 3,
        "keepalives_interval": SILENCE_TIMEOUT // 3,
        "keepalives_count": 2,
    }
    defaults = {"connect_timeout": 10, "tcp_user_timeout": SILENCE_TIMEOUT * 1000, **probes}
    given = {name: value for name, value in defaults.items() if name not in url.query}
    try:  # hide_parameters keeps the arguments of jobs out of logs.
        engine = create_engine(url.set(drivername="postgresql+psycopg"), connect_args=given, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"store.url: PostgreSQL needs psycopg 3 ({error}): pip install 'prefect-executor-adapter[postgres]'"
        ) from None
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: Any, _: Any) -> None:
    # Otherwise a program that loses its power or network within a transaction would hold its locks for hours.
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_TIMEOUT:.0f}s'")
    # A lock that others keep is no reason to be silent.
    connection.execute(f"SET lock_timeout = '{BUSY_TIMEOUT:.0f}s'")
    connection.commit()


_PERMANENT_ERRORS = (DataError, IntegrityError, ProgrammingError)
"""Errors of the statement or its data, which would come again."""
_MISSING_CODES = ("42P01", "42501", "3F000", "3D000")
"""PostgreSQL's codes for a table, a right, a schema or a database that is missing. Their class of exceptions is that of
wrong statements, but what is missing may come back."""


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the database's errors that may pass into StoreUnavailableError.

    Raises:
        StoreUnavailableError: has the database's message in one line.
    """
    try:
        yield
    except (DatabaseError, InterfaceError, NoConnectionError, sqlite3.DatabaseError) as error:
        cause = getattr(error, "orig", None) or error
        if isinstance(error, _PERMANENT_ERRORS) and getattr(cause, "sqlstate", None) not in _MISSING_CODES:
            raise
        raise StoreUnavailableError(" ".join(str(cause).split())) from error
