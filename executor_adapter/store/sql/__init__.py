"""Jobs remembered in a database: SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

from executor_adapter.store.base import JobStore
from executor_adapter.store.sql.engines import make_engine, unavailable_said
from executor_adapter.store.sql.migrate import migrate
from executor_adapter.store.sql.store import SqlStore

__all__ = ["SqlStore", "open_sql_store"]


def open_sql_store(url: str) -> JobStore:
    """The store at `url`, its schema made or brought up to date.

    Raises:
        ConfigurationError: the url is wrong, its driver is missing, or a newer version made the database.
        StoreUnavailableError: it cannot be opened now.
    """
    engine = make_engine(url)
    try:
        with unavailable_said():
            migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return SqlStore(engine)
