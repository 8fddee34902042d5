"""Where jobs are remembered; see `base.JobStore`."""

from __future__ import annotations

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store.base import (
    ALL,
    JobFilter,
    JobRecord,
    JobStore,
    LeaseLost,
    LogLine,
    Page,
    StoreUnavailable,
)
from executor_adapter.store.host import Host

__all__ = [
    "ALL",
    "Host",
    "JobFilter",
    "JobRecord",
    "JobStore",
    "LeaseLost",
    "LogLine",
    "Page",
    "StoreUnavailable",
    "open_store",
]


def open_store(url: str) -> JobStore:
    """The store that `url` names, made or brought up to date where it has to be.

    "memory:" is in this process alone; "sqlite:///jobs.db" a file; "postgresql://user@host/database" a server.

    Raises:
        ConfigurationError: the url names no store, or what it needs is not installed.
        StoreUnavailable: it cannot be opened now.
    """
    scheme = url.partition(":")[0].partition("+")[0]
    match scheme:
        case "memory":
            from executor_adapter.store.memory import MemoryStore

            return MemoryStore()
        case "sqlite" | "postgresql" | "postgres":
            from sqlalchemy.exc import SQLAlchemyError  # here, since it is heavy and not always needed

            from executor_adapter.store.sql import open_sql_store

            try:
                return open_sql_store(url)
            except SQLAlchemyError as error:  # StoreUnavailable are those that may pass
                said = str(error).partition("\n")[0]
                raise ConfigurationError(f"store.url: a {scheme} store cannot be opened so: {said}") from error
        case _:
            named = scheme.rpartition("@")[2]  # the rest may hold a password, and so may all before an @
            raise ConfigurationError(
                f"store.url: {named!r} is no store: give 'memory:', 'sqlite:///path' or 'postgresql://user@host/database'"
            )
