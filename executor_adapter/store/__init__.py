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
            from executor_adapter.store.sql import open_sql_store  # here, since it is heavy and not always needed

            return open_sql_store(url)
        case _:
            raise ConfigurationError(
                f"store.url: {url!r} is no store: give 'memory:', 'sqlite:///path' or 'postgresql://user@host/database'"
            )
