"""Stores remember jobs: in memory, in an SQLite file or in PostgreSQL. `base.JobStore` is their contract."""

from __future__ import annotations

import difflib
import os
import re
import sys

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store.base import JobStore, LeaseLostError, StoreUnavailableError, Written
from executor_adapter.store.host import Host, close_host, new_host
from executor_adapter.store.pickles import SignedPickles, signed_pickles
from executor_adapter.store.records import (
    ALL,
    MAX_LOG_LINES,
    JobFilter,
    JobRecord,
    LogLine,
    Page,
    Unpickle,
    call_fields,
    given_fields,
    restore,
)
from executor_adapter.store.tools import SharedTools, ToolAsk, ToolControl, ToolShare, ToolUse

__all__ = [
    "ALL",
    "MAX_LOG_LINES",
    "Host",
    "JobFilter",
    "JobRecord",
    "JobStore",
    "LeaseLostError",
    "LogLine",
    "Page",
    "SharedTools",
    "SignedPickles",
    "StoreUnavailableError",
    "ToolAsk",
    "ToolControl",
    "ToolShare",
    "ToolUse",
    "Unpickle",
    "Written",
    "call_fields",
    "close_host",
    "given_fields",
    "new_host",
    "open_store",
    "restore",
    "signed_pickles",
]


def open_store(url: str) -> JobStore:
    """Open the store at `url`; a database is created or upgraded where it has to be.

    Args:
        url: "memory:" for this process alone, "sqlite:///jobs.db" for a file, or "postgresql://user@host/database".

    Raises:
        ConfigurationError: the URL does not name a store, or what the store needs is not installed.
        StoreUnavailableError: the store cannot be opened now.
    """
    if _WINDOWS_PATH.match(url) and os.name != "nt":
        raise ConfigurationError(f"store.url: {url!r} is a path on Windows, and this is {sys.platform}: {_URLS}")
    scheme = url.partition(":")[0].partition("+")[0]
    match scheme:
        case "memory":
            from executor_adapter.store.memory import MemoryStore

            return MemoryStore()
        case "sqlite" | "postgresql" | "postgres":
            # Imported here, because SQLAlchemy is heavy and not always needed.
            from sqlalchemy.exc import SQLAlchemyError

            from executor_adapter.store.sql import open_sql_store

            try:
                return open_sql_store(url)
            except SQLAlchemyError as error:  # Errors that may pass are StoreUnavailableError by now.
                reason = str(error).partition("\n")[0]
                raise ConfigurationError(f"store.url: this {scheme} store cannot be opened: {reason}") from error
        case _ if "://" not in url and "@" not in url:
            path = f"///{url.replace(chr(92), '/')}"  # An absolute path keeps its own slash, as the fourth.
            raise ConfigurationError(f"store.url: {url!r} is a path, not a URL: give 'sqlite:{path}'")
        case _:
            name = scheme.rpartition("@")[2]  # What stands before an @ may hold a password.
            near = difflib.get_close_matches(name, ("sqlite", "postgresql"), n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(f"store.url: {name!r} is not a store: {hint}{_URLS}")


_URLS = "give 'memory:', 'sqlite:///path' or 'postgresql://user@host/database'"
_WINDOWS_PATH = re.compile(r"(sqlite:/*)?[A-Za-z]:[\\/]")
