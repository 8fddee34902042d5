"""A schema of its own on a real PostgreSQL, or an SQLite file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/test"


@contextmanager
def database(kind: str, directory: Path) -> Iterator[tuple[str, sa.Engine, str]]:
    """Yield a URL, an engine and the prefix of tables; what is made with the prefix is removed in the end."""
    if kind == "sqlite":
        engine = sa.create_engine(f"sqlite:///{directory}/shop.db")
        yield f"sqlite:///{directory}/shop.db", engine, ""
        engine.dispose()
        return
    engine = sa.create_engine(POSTGRESQL.replace("://", "+psycopg://"))
    schema = f"shop_{uuid.uuid4().hex[:12]}"
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    except sa.exc.OperationalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL ({error}): start it on 127.0.0.1:5432")
    try:
        yield POSTGRESQL, engine, f"{schema}."
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text(f"DROP SCHEMA {schema} CASCADE"))
        engine.dispose()
