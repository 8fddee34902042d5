"""Stores in a database: SQLite, or PostgreSQL. Many processes may open one, and so upgrade its schema, at once."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store.base import JobStore
from executor_adapter.store.sql.engines import make_engine, translate_errors
from executor_adapter.store.sql.schema import REVISION, VERSIONS
from executor_adapter.store.sql.store import SqlStore

__all__ = ["SqlStore", "open_sql_store"]


def open_sql_store(url: str) -> JobStore:
    """Open the store at `url`; its schema is created or upgraded where it has to be.

    Raises:
        ConfigurationError: the URL is wrong, its driver is missing, or another version made the database.
        StoreUnavailableError: the store cannot be opened now.
    """
    engine = make_engine(url)
    try:
        with translate_errors():
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)


UPGRADE_TIMEOUT = 60.0
"""Seconds that opening a store waits for a program that creates or upgrades its schema."""
_LOCK = 0x657865637574
"""PostgreSQL's advisory lock that is held while the schema is changed."""

_alembic_lock = threading.Lock()
"""Held while Alembic works, because it keeps its state in a module."""


def _migrate(engine: Engine) -> None:
    """Create the schema, or upgrade it.

    Raises:
        ConfigurationError: another version of this package made the database.
    """
    with engine.connect() as connection:
        if _revision(connection) == REVISION:
            return
    # Imported here, because it is heavy and most stores are up to date; and not while others wait for the database.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with _alembic_lock, engine.execution_options(writes=True, busy_timeout=UPGRADE_TIMEOUT).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_TIMEOUT:.0f}s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if (found := _revision(connection)) != REVISION:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise ConfigurationError(
                    f"the store's schema is {found!r} ({error}): use the version of this package that made it"
                ) from None


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSIONS):
        return None
    found: str | None = connection.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar()
    return found
