"""Engines: how SQLite and PostgreSQL are spoken to, and which of their errors mean "not now"."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sqlite3
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

BUSY_SECONDS = 5.0
"""How long a write waits for another's to end before the store counts as unavailable."""
CHECKPOINT_AFTER = 2000
"""Pages in the log of writes past which a commit moves them to the file and waits for the disk; the execution option
`checkpoint_after` gives a transaction another number, so that one that may wait does it before those that may not."""
IDLE_SECONDS = 30.0
"""For so long a program may say nothing within a transaction before PostgreSQL ends that."""
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""What PostgreSQL takes in a URL's query and nobody is to see."""
BUSY_STEP = 0.002
"""Between its tries. Those of SQLite itself grow to 100 ms, in which others would write again and again."""


def make_engine(url: str) -> Engine:
    """
    Raises:
        ConfigurationError: the url is none, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # neither is quoted: a password may be in it
        raise ConfigurationError(
            "store.url: cannot be read: write it as postgresql://user@host:port/database"
        ) from None
    if "@" in (parsed.host or ""):  # that would be shown as part of the host
        raise ConfigurationError("store.url: a user or password with an @ in it: write it as %40")
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked process: use none of the parent's connections, and never close one.

    See "How To Corrupt An SQLite Database File", 2.6: even sqlite3_close() of an inherited connection may. A reference
    more keeps them from it, also at the interpreter's exit.
    """
    for engine in _engines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine.pool))
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("store.url: 'sqlite://' names no file: give 'sqlite:///jobs.db', or 'memory:'")
    directory = Path(url.database).absolute().parent
    if not directory.is_dir():
        raise ConfigurationError(f"store.url: {directory} is no directory: make it, or name another file")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # transactions begin as `_begin_sqlite` says, and not when the driver thinks so
    connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer, nor a writer for readers
    connection.execute("PRAGMA synchronous = NORMAL")  # what is committed outlives the process; a power cut may undo it


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("writes", False):
        connection.exec_driver_sql("BEGIN")
        return
    # Whoever is going to write says so at once: two that read first and write then would be refused, not wait.
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA wal_autocheckpoint = {options.get('checkpoint_after', CHECKPOINT_AFTER)}")
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        _begin_to_write(driver)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")


def _begin_to_write(driver: sqlite3.Connection) -> None:
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(BUSY_STEP)


def _postgresql(url: URL) -> Engine:
    # hide_parameters: what jobs are called with belongs in no log.
    options: dict[str, Any] = {"connect_args": {"connect_timeout": 10}, "hide_parameters": True}
    try:
        engine = create_engine(url.set(drivername="postgresql+psycopg"), **options)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"store.url: PostgreSQL needs psycopg 3 ({error}): pip install 'prefect-executor-adapter[postgres]'"
        ) from None
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: Any, _: Any) -> None:
    # Who loses its power or its network within a transaction would hold its locks for hours.
    connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS:.0f}s'")
    connection.commit()


_WRONG = (DataError, IntegrityError, ProgrammingError)
"""These say that what was asked is wrong, and that it would be so again."""


@contextlib.contextmanager
def unavailable_said() -> Iterator[None]:
    """
    Raises:
        StoreUnavailableError: in one line, instead of the database's own error, where that may pass.
    """
    try:
        yield
    except (DatabaseError, InterfaceError, NoConnectionError, sqlite3.DatabaseError) as error:
        if isinstance(error, _WRONG):
            raise
        cause = getattr(error, "orig", None) or error
        raise StoreUnavailableError(" ".join(str(cause).split())) from error
