"""URLs of the stores under test: in memory, SQLite files, and new databases on a real PostgreSQL."""

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
    """Create a database and drop it in the end; skips where there is no server, or fails with CI=true."""
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
    """Yield the URL of an empty store of this kind: memory, sqlite or postgresql."""
    if kind == "postgresql":
        with postgresql_url() as url:
            yield url
    else:
        yield "memory:" if kind == "memory" else f"sqlite:///{directory}/jobs.db"
