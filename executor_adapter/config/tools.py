"""The section `tools`: what each tool's jobs collect, and how many of them run and start at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.sections import JobSettings, Name, Names, Section
from executor_adapter.job import Count, Number, Seconds


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
    job: JobSettings = JobSettings()
    """Defaults of this tool's jobs; they win over the sections `collection`, `processing` and `job`."""


class FileTable(Section):
    """Describes one table in a file."""

    file: str = Field(min_length=1, description="the path of a CSV or ZIP file, relative to the package or directory")
    member: str | None = None
    """The file inside a ZIP archive that has several, by its name or a pattern such as `flights*.csv`."""
    partition: Names = ()
    """Columns whose values divide the table into windows, each of which one job collects; none: one window, `all`."""
    windows: Names | None = None
    """The windows to collect; null: all."""
    schema_name: str | None = Field(default=None, alias="schema")
    """The schema that its rows are checked against; null: they are not checked."""


class FilesTool(Tool):
    """Describes tables in files of an installed package, or of a directory."""

    source: Literal["files"] = Field(description="'files' or 'rest'")
    package: str | None = None
    """The installed Python package that has the files."""
    directory: Path | None = None
    """The directory of the files, relative to the configuration file."""
    tables: dict[Name, FileTable] = Field(min_length=1, description="a mapping of table names to {file: ...}")

    @model_validator(mode="after")
    def _check_place(self) -> FilesTool:
        if (self.package is None) == (self.directory is None):
            raise PydanticCustomError("place", "must have one of the keys package and directory")
        return self


class RestResource(Section):
    """Describes one resource of a REST API: a list of objects, read page by page.

    In `path`, `params` and `body`, `{since}` and `{until}` stand for a window's first and last moment, and `{id}` for
    each id of the resource that `for_each` names (asked for one after another, without pages).
    """

    path: str = Field(min_length=1, description="the path below the tool's url")
    method: Literal["GET", "POST"] = "GET"
    """The HTTP method of the request."""
    params: dict[str, str] = Field(default_factory=dict)
    """The query of the request."""
    body: dict[str, Any] = Field(default_factory=dict)
    """The body of the request, sent as JSON."""
    key: str = "id"
    """The field that identifies an object."""
    for_each: str | None = None
    """Another resource: there is one request for each of its objects."""
    schema_name: str | None = Field(default=None, alias="schema")
    """The schema that its objects are checked against; null: they are not checked."""


class RestTool(Tool):
    """Describes a REST API whose objects are collected by the UTC day they belong to."""

    source: Literal["rest"] = Field(description="'files' or 'rest'")
    url: str | None = Field(default=None, pattern=r"^https?://")
    """The API's URL; null: the API of the Prefect server that the flow uses, with the credentials set for it."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request; set secret ones in the environment."""
    page_size: Count = Field(default=200, ge=1)
    """Objects in one page."""
    pages: Count = Field(default=1000, ge=1)
    """Pages of one resource and day, at most; more are an error, and never dropped in silence."""
    timeout: Seconds = 30.0
    """Seconds to wait for a response."""
    days: Count = Field(default=1, ge=0)
    """Days before today to collect; a day that was collected after its end is not requested again."""
    resources: dict[Name, RestResource] = Field(min_length=1, description="a mapping of table names to {path: ...}")

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
    of_sources = (FilesTool.model_fields | RestTool.model_fields).keys() - Tool.model_fields
    return None if of_sources & value.keys() else "own"


ToolSettings = Annotated[
    Annotated[FilesTool, Tag("files")] | Annotated[RestTool, Tag("rest")] | Annotated[Tool, Tag("own")],
    Discriminator(_kind),
]
