"""Tools whose rows come from a database, or from functions."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.credentials import Credential
from executor_adapter.config.sections import Name, Names
from executor_adapter.config.tables import CursorSettings
from executor_adapter.config.tool import KINDS, Tool, check_url
from executor_adapter.job import Count

_READS = re.compile(r"(?is)(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*+(?:select|with)\b")


class SqlTable(CursorSettings):
    """Describes what is read from a database: a table, or the rows of a query."""

    table: str | None = None
    """The table, as `name` or `schema.name`."""
    query: str | None = None
    """The query instead of a table, a SELECT; `:since` and `:until` in it stand for the bounds of the window."""
    columns: Names = ()
    """The columns of the table that are read; none: all."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise PydanticCustomError("source", "must have one of the keys table and query")
        if self.query is not None and not _READS.match(self.query):
            raise PydanticCustomError("source", "query must begin with SELECT or WITH: sources are only read")
        if self.query is not None and self.columns:
            raise PydanticCustomError("source", "columns goes with table: name the columns in the query")
        return self


class SqlTool(Tool):
    """Describes tables of a database that SQLAlchemy can reach."""

    source: Literal["sql"] = Field(description=KINDS)
    url: str = Field(min_length=1, description="the URL of the database, as SQLAlchemy has it, without a password")
    credential: Credential | None = None
    """Where the password is; null: there is none."""
    batch_rows: Count = Field(default=50_000, ge=1)
    """Rows in memory, and in one landed file."""
    tables: dict[Name, SqlTable] = Field(min_length=1, description="a mapping of table names to {table: ...}")

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        check_url(["url"], self.url, "say in `credential` where the password is")
        return self


class FunctionTable(CursorSettings):
    """Describes what is called for the objects of a table."""

    function: str = Field(
        pattern=r"^[\w.]+:[\w.]+$", description="the function, as module:name; it returns an iterable of objects"
    )
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What it is called with by name. It is also given `since` and `until`, where it has such parameters."""


class FunctionTool(Tool):
    """Describes tables that functions give: your own, or sources of dlt."""

    source: Literal["function"] = Field(description=KINDS)
    batch_rows: Count = Field(default=10_000, ge=1)
    """Objects in memory, and in one landed file."""
    tables: dict[Name, FunctionTable] = Field(min_length=1, description="a mapping of table names to {function: ...}")
