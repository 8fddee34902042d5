"""Stores in a database: SQLite, or PostgreSQL."""

from __future__ import annotations

from executor_adapter.store.base import JobStore
from executor_adapter.store.sql.engines import make_engine, translate_errors
from executor_adapter.store.sql.migrate import migrate
from executor_adapter.store.sql.store import SqlStore

__all__ = ["SqlStore", "open_sql_store"]


def open_sql_store(url: str) -> JobStore:
    """Open the store at `url`; its schema is created or upgraded where it has to be.

    Raises:
        ConfigurationError: the URL is wrong, its driver is missing, or a newer version made the database.
        StoreUnavailableError: the store cannot be opened now.
    """
    engine = make_engine(url)
    try:
        with translate_errors():
            migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)
