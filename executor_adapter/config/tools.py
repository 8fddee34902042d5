"""The section `tools`: what each tool's jobs collect, and how many of them run and start at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.credentials import Credential
from executor_adapter.config.formats import Format
from executor_adapter.config.paging import Paging
from executor_adapter.config.sections import Name, Names
from executor_adapter.config.sql_tool import FunctionTool, SqlTool
from executor_adapter.config.tables import CursorSettings, TableSettings
from executor_adapter.config.tool import KINDS, Tool, check_secrets, check_url, refused
from executor_adapter.job import Count, Seconds


class FileTable(TableSettings, Format):
    """Describes one table in a file, or in files of the same kind."""

    file: str = Field(min_length=1, description="the path or pattern of a file, or its URL")
    """CSV, NDJSON, JSON or Parquet, also in ZIP or gzip: the path or pattern (`*.csv`) below the package or directory,
    or a URL (`s3://bucket/*.csv`)."""
    member: str | None = None
    """The file inside a ZIP archive that has several, by its name or a pattern such as `flights*.csv`."""
    partition: Names = ()
    """Columns whose values divide the table into windows, each of which one job collects; none: one window, `all`."""
    period: Literal["year", "month", "day"] | None = None
    """Of the one column in `partition`, a date, only so much makes the window; null: all of it."""
    windows: Names | None = None
    """The windows to collect; null: all."""


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


class RestResource(CursorSettings, Format):
    """Describes one resource of a REST API: a list of objects, read page by page.

    In `path`, `params` and `body`, `{since}` and `{until}` stand for the bounds of a window, `{last}` for the last
    moment before `until`, and `{id}` for each id of the resource that `for_each` names. In the path they are quoted.
    """

    path: str = Field(min_length=1, description="the path below the tool's url")
    method: Literal["GET", "POST"] = "GET"
    """The HTTP method of the request."""
    params: dict[str, str] = Field(default_factory=dict)
    """The query of the request."""
    body: dict[str, Any] = Field(default_factory=dict)
    """The body of the request, sent as JSON."""
    key: Names = ("id",)
    """The fields that identify an object; the first one is what `{id}` stands for in a resource of `for_each`."""
    paging: Paging | None = None
    """How its pages are asked for; null: as the tool says."""
    for_each: str | None = None
    """Another resource: there is one request for each of its objects."""


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
