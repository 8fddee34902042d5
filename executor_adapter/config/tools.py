"""The section `tools`: what each tool's jobs collect, how many run at once, and how many start in a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.sections import JobSettings, Name, Names, Section
from executor_adapter.job.validation import Count, Number, Seconds


class Tool(Section):
    """A tool whose jobs are the user's own: limits, and what its jobs are given where they say nothing themselves."""

    max_concurrent: Count | None = Field(default=None, ge=1)
    """Attempts of its jobs at once."""
    rate: Seconds | None = None
    """Starts of its jobs in a second, on average."""
    burst: Count = Field(default=1, ge=1)
    """Starts that may follow at once after a pause."""
    buffer: Number | None = Field(default=None, ge=0, lt=1)
    """Share of the rate that is left unused; null: that of `collection.rate_limit_buffer`."""
    job: JobSettings = JobSettings()
    """What this tool's jobs are given; wins over the sections `collection`, `processing` and `job`."""


class FileTable(Section):
    """One table in a file."""

    file: str = Field(min_length=1, description="the path of a CSV or ZIP file, relative to the package or directory")
    member: str | None = None
    """Of a ZIP archive: the file inside, where there are several; a pattern such as `flights*.csv` may name it."""
    partition: Names = ()
    """Columns whose values cut the table into windows, one collection job each; none: one window, `all`."""
    windows: Names | None = None
    """Collect only these windows."""
    schema_name: str | None = Field(default=None, alias="schema")
    """What its rows are checked against; none: they pass as they are."""


class FilesTool(Tool):
    """Tables in files: of an installed package, or of a directory."""

    source: Literal["files"] = Field(description="'files' or 'rest'")
    package: str | None = None
    """The Python package that the files are part of."""
    directory: Path | None = None
    """The directory that they are in, relative to the file that says so."""
    tables: dict[Name, FileTable] = Field(min_length=1, description="a mapping of table names to {file: ...}")

    @model_validator(mode="after")
    def _check_place(self) -> FilesTool:
        if (self.package is None) == (self.directory is None):
            raise PydanticCustomError("place", "must have one of the keys package and directory")
        return self


class RestResource(Section):
    """One resource of a REST API: a list of objects, read page by page.

    In `path`, `params` and `body`, `{since}` and `{until}` stand for a window's first and last moment, and `{id}` for
    each id of the resource that `for_each` names (asked for one after another, without pages).
    """

    path: str = Field(min_length=1, description="the path below the tool's url")
    method: Literal["GET", "POST"] = "GET"
    """How it is asked for."""
    params: dict[str, str] = Field(default_factory=dict)
    """The query."""
    body: dict[str, Any] = Field(default_factory=dict)
    """Sent as JSON."""
    key: str = "id"
    """The field that tells one object from another."""
    for_each: str | None = None
    """Asked for once for each object of this resource."""
    schema_name: str | None = Field(default=None, alias="schema")
    """What its objects are checked against; none: they pass as they are."""


class RestTool(Tool):
    """A REST API over HTTP, its objects collected by the UTC day they belong to."""

    source: Literal["rest"] = Field(description="'files' or 'rest'")
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Left out: the API of the Prefect server that the flow runs against, with the credentials set for it."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Sent with each request; what is secret in them belongs in the environment."""
    page_size: Count = Field(default=200, ge=1)
    """Objects asked for at a time."""
    pages: Count = Field(default=1000, ge=1)
    """At most so many pages of one resource and day: more is an error, never a silent cut."""
    timeout: Seconds = 30.0
    """Seconds to wait for an answer."""
    days: Count = Field(default=1, ge=0)
    """How many days before today to look at; those collected after they were over are not asked for again."""
    resources: dict[Name, RestResource] = Field(min_length=1, description="a mapping of table names to {path: ...}")

    @model_validator(mode="after")
    def _check_parents(self) -> RestTool:
        for name, resource in self.resources.items():
            if resource.for_each is not None and resource.for_each not in self.resources:
                detail = f"resources.{name}.for_each: {resource.for_each!r} is none of {', '.join(self.resources)}"
                raise PydanticCustomError("parent", "{detail}", {"detail": detail})
        return self


def _kind(value: Any) -> str | None:
    """Which kind of tool is described; None where it says what only one with a source can have, and names none."""
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
