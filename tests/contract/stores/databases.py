"""The stores under test: in memory, SQLite files and databases of their own on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

SERVER = "postgresql://postgres@127.0.0.1:5432"
START = "start PostgreSQL on 127.0.0.1:5432, e.g. `pg_ctlcluster 15 main start`"


@contextlib.contextmanager
def postgresql_url() -> Iterator[str]:
    """A new database, dropped in the end. Skips where there is no server; with CI=true that is a failure."""
    name = f"store_{uuid.uuid4().hex[:12]}"
    try:
        connection = psycopg.connect(f"{SERVER}/test", autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL ({error}): {START}")
    with connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        try:
            yield f"{SERVER}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@contextlib.contextmanager
def url_of(kind: str, directory: Path) -> Iterator[str]:
    if kind == "postgresql":
        with postgresql_url() as url:
            yield url
    else:
        yield "memory:" if kind == "memory" else f"sqlite:///{directory}/jobs.db"
