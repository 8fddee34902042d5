"""Stores remember jobs: in memory, in an SQLite file or in PostgreSQL. `base.JobStore` is their contract."""

from __future__ import annotations

import difflib
import os
import re
import sys

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store.base import JobStore as JobStore
from executor_adapter.store.base import LeaseLostError as LeaseLostError
from executor_adapter.store.base import StoreUnavailableError as StoreUnavailableError
from executor_adapter.store.base import Written as Written
from executor_adapter.store.host import Host as Host
from executor_adapter.store.host import close_host as close_host
from executor_adapter.store.host import new_host as new_host
from executor_adapter.store.pickles import SignedPickles as SignedPickles
from executor_adapter.store.pickles import signed_pickles as signed_pickles
from executor_adapter.store.records import ALL as ALL
from executor_adapter.store.records import JOB_FIELDS as JOB_FIELDS
from executor_adapter.store.records import MAX_LOG_LINES as MAX_LOG_LINES
from executor_adapter.store.records import JobFilter as JobFilter
from executor_adapter.store.records import JobRecord as JobRecord
from executor_adapter.store.records import LogLine as LogLine
from executor_adapter.store.records import Page as Page
from executor_adapter.store.records import Unpickle as Unpickle
from executor_adapter.store.records import call_fields as call_fields
from executor_adapter.store.records import given_fields as given_fields
from executor_adapter.store.records import readable_call as readable_call
from executor_adapter.store.records import restore as restore
from executor_adapter.store.tools import SharedTools as SharedTools
from executor_adapter.store.tools import ToolAsk as ToolAsk
from executor_adapter.store.tools import ToolControl as ToolControl
from executor_adapter.store.tools import ToolShare as ToolShare
from executor_adapter.store.tools import ToolUse as ToolUse


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
