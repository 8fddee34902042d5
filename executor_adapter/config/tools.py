"""The section `tools`: what each tool's jobs collect, and how many of them run and start at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.credentials import Credential
from executor_adapter.config.secrets import SECRET, hidden
from executor_adapter.config.sections import JobSettings, Name, Names, Section
from executor_adapter.config.tables import FileTable, FunctionTable, Paging, RestResource, SqlTable
from executor_adapter.job import Count, Number, Seconds

KINDS = "'files', 'rest', 'sql' or 'function'"
"""What `source` may be."""


class Tool(Section):
    """Holds the limits of a tool and the defaults of its jobs; the jobs themselves are the user's own."""

    max_concurrent: Count | None = Field(default=None, ge=1)
    """Attempts of its jobs that run at the same time."""
    rate: Seconds | None = None
    """Attempts of its jobs that start in a second, on average."""
    burst: Count = Field(default=1, ge=1)
    """Attempts that may start at once after a pause."""
    buffer: Number | None = Field(default=None, ge=0, lt=1)
    """Share of the rate that is left unused; null: `collection.rate_limit_buffer`."""
    summary: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$")
    """`module:function` that says for the report, in sentences and a picture, what the tool's tables hold; null:
    nothing is said."""
    job: JobSettings = JobSettings()
    """Defaults of this tool's jobs; they win over the sections `collection`, `processing` and `job`."""

    def relative_to(self, directory: Path) -> Self:
        """Return the tool with relative paths, those of its credentials too, made relative to `directory`."""
        update: dict[str, Any] = {
            name: directory / value if isinstance(value, Path) else value.relative_to(directory)
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Credential | Path)
        }
        for name in ("tables", "resources"):
            tables = getattr(self, name, {})
            update |= {name: {key: table.relative_to(directory) for key, table in tables.items()}} if tables else {}
        return self.model_copy(update=update)


def check_secrets(key: str, values: Mapping[str, Any], credential: Credential | None) -> None:
    """Refuse a secret among the values, and the place of one that is not described."""
    for name, value in values.items():
        has_place = isinstance(value, str) and "{credential}" in value
        if has_place and credential is None:
            raise refused([key, name], repr(value), f"must have the key credential beside {key}")
        if hidden(name, value) != value and not has_place:
            why = 'must be "{credential}", with or without text around it: say in `credential` where the secret is'
            raise refused([key, name], "(hidden)", why)


def check_url(path: list[str], url: str, way: str) -> None:
    """Refuse a URL with a password, or with another secret in its query. Of a strange one it refuses too much."""
    place, _, query = url.partition("?")
    # Of "authenticator" and the like the value is a method.
    names = (name for name, _ in parse_qsl(query) if "auth" not in name.lower())
    if hidden("url", place) != place or "@" in query or any(map(SECRET.search, names)):
        raise refused(path, "a URL with a password", way)


def refused(path: list[str], value: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("together", "{why}", {"path": path, "value": value, "why": why})


class FilesTool(Tool):
    """Describes tables in files of an installed package, of a directory, or at URLs."""

    source: Literal["files"] = Field(description=KINDS)
    package: str | None = None
    """The installed Python package that has the files."""
    directory: Path | None = None
    """The directory of the files, relative to the configuration file."""
    storage: dict[str, Any] = Field(default_factory=dict)
    """Options of the file system that a URL names, as fsspec has them. `{credential}` in a text stands for the
    credential, as in `secret: "{credential}"`; a secret itself is refused here."""
    credential: Credential | None = None
    """Where the secret of the storage is; null: it needs none."""
    max_bytes: Count = Field(default=100 << 30, ge=1)
    """Bytes of one file, as it is and also unpacked; more are an error."""
    tables: dict[Name, FileTable] = Field(min_length=1, description="a mapping of table names to {file: ...}")

    @model_validator(mode="after")
    def _check_place(self) -> FilesTool:
        needs_place = any("://" not in table.file for table in self.tables.values())
        places = (self.package is not None) + (self.directory is not None)
        if places == 2 or places < needs_place:
            raise PydanticCustomError("place", "must have one of the keys package and directory")
        check_secrets("storage", self.storage, self.credential)
        for name, table in self.tables.items():
            if "://" in table.file:
                check_url(["tables", name, "file"], table.file, "put the secret into `storage`, by `credential`")
        return self


class RestTool(Tool):
    """Describes a REST API, whose objects are collected by UTC day, by a cursor, or all of them each time."""

    source: Literal["rest"] = Field(description=KINDS)
    url: str = Field(pattern=r"^https?://", description="the API's URL, which begins with http:// or https://")
    credential: Credential | None = None
    """Where the API's secret is; null: it needs none. It is sent as `Authorization: Bearer SECRET`, unless `username`
    or a header says otherwise."""
    username: str | None = None
    """The name that belongs to the credential, which is then the password of HTTP's basic authentication."""
    token_url: str | None = Field(default=None, pattern=r"^https?://")
    """OAuth2: where a token is got with `username` and the credential, the client's id and secret; null: no OAuth2."""
    scope: str | None = None
    """OAuth2: what the token is for."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request. `{credential}` in a value stands for the credential, as in `X-Api-Key: "{credential}"`;
    a secret itself is refused here."""
    paging: Paging = Paging()
    """How pages are asked for."""
    page_size: Count = Field(default=200, ge=1)
    """Objects in one page."""
    pages: Count = Field(default=1000, ge=1)
    """Pages of one resource and day, at most; more are an error, and never dropped in silence."""
    timeout: Seconds = 30.0
    """Seconds to wait for a response."""
    request_rate: Seconds | None = None
    """Requests in a second, of all jobs of the tool on this machine together; null: no limit."""
    allowed_hosts: Names = ()
    """Hosts beside that of `url`, as `host` or `host:port`, to which a redirect or a next page may lead: they get no
    credentials. Addresses that are link-local never."""
    max_bytes: Count = Field(default=1 << 30, ge=1)
    """Bytes of one answer, as they are received and also unpacked; more are an error."""
    days: Count = Field(default=1, ge=0)
    """Days before today that the first run collects. Later runs go on after the last day that was collected after its
    end, however long ago that was; such a day is not requested again."""
    resources: dict[Name, RestResource] = Field(min_length=1, description="a mapping of table names to {path: ...}")

    @model_validator(mode="after")
    def _check_secrets(self) -> RestTool:
        check_secrets("headers", self.headers, self.credential)
        check_url(["url"], self.url, "set username, and say in `credential` where the password is")
        check_url(["token_url"], self.token_url or "", "set username, and say in `credential` where the password is")
        if self.username is not None and self.credential is None:
            raise refused(["username"], repr(self.username), "must have the key credential beside it, for the password")
        if self.token_url is not None and self.username is None:
            raise refused(["token_url"], repr(self.token_url), "must have the keys username and credential beside it")
        return self

    @model_validator(mode="after")
    def _check_parents(self) -> RestTool:
        for name, resource in self.resources.items():
            if resource.for_each is not None and resource.for_each not in self.resources:
                detail = f"resources.{name}.for_each: {resource.for_each!r} is not one of {', '.join(self.resources)}"
                raise PydanticCustomError("parent", "{detail}", {"detail": detail})
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


class FunctionTool(Tool):
    """Describes tables that functions give: your own, or sources of dlt."""

    source: Literal["function"] = Field(description=KINDS)
    batch_rows: Count = Field(default=10_000, ge=1)
    """Objects in memory, and in one landed file."""
    tables: dict[Name, FunctionTable] = Field(min_length=1, description="a mapping of table names to {function: ...}")


def _kind(value: Any) -> str | None:
    """Return which kind of tool is described; None where `source` is missing and another key requires it."""
    if not isinstance(value, Mapping):
        return getattr(value, "source", "own")
    if "source" in value:
        return str(value["source"])
    kinds = (FilesTool, RestTool, SqlTool, FunctionTool)
    of_sources = {name for kind in kinds for name in kind.model_fields} - Tool.model_fields.keys()
    return None if of_sources & value.keys() else "own"


ToolSettings = Annotated[
    Annotated[FilesTool, Tag("files")]
    | Annotated[RestTool, Tag("rest")]
    | Annotated[SqlTool, Tag("sql")]
    | Annotated[FunctionTool, Tag("function")]
    | Annotated[Tool, Tag("own")],
    Discriminator(_kind),
]
