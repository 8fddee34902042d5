"""What tables may say: how bytes become rows, what is asked of a source, and what is made of the rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.schemas import TableSchema
from executor_adapter.config.sections import Names, Section
from executor_adapter.job import Count, Number

Vanished = Literal["keep", "mark", "delete"]

_READS = re.compile(r"(?is)(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*+(?:select|with)\b")


class Format(Section):
    """Says how bytes become rows. What is not set is found out from the data, and the log says what was found."""

    format: Literal["csv", "ndjson", "json", "parquet"] | None = None
    """What the data is; null: by the name of the file, or the content type of the answer."""
    encoding: str | None = None
    """The encoding of text, such as latin-1; null: UTF-8, or what the data's byte order mark says."""
    records: str | None = None
    """JSON: the keys that lead to the list of objects, or to one object, such as `data.items`; `.`: the data is one
    object; null: the data is the list."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """CSV: what is between two values; null: a comma, and a tab in a .tsv file."""
    quote: str | None = Field(default=None, max_length=1)
    """CSV: the character around values; null: `"`; empty: there is none."""
    header: bool | None = None
    """CSV: whether the first line has the names of the columns; null: found out; an error where that is not clear."""
    columns: Names = ()
    """CSV: the names of the columns, where the data has no header."""
    nulls: Names = ()
    """Texts that mean that there is no value, as in CSV an empty one does always. A quoted text in CSV is a value; an
    empty text in JSON is one."""


class Paging(Section):
    """Says how the pages of an API are asked for. A page that is short is never taken for the last one.

    Pages by number or offset end with an empty page or by a total; those by cursor, URL or Link header where there is
    no next one.
    """

    by: Literal["none", "page", "offset", "cursor", "url", "link"] = "none"
    """`page`: numbers; `offset`: objects before the page; `cursor`: a value from the answer; `url`: an address from the
    answer; `link`: the Link header; `none`: one answer has everything."""
    size_param: str | None = "limit"
    """The parameter with the size of a page; null: it is not sent."""
    page_param: str = "page"
    """`page`: the parameter with the number of the page."""
    first_page: Count = Field(default=1, ge=0)
    """`page`: the number of the first page."""
    offset_param: str = "offset"
    """`offset`: the parameter with the number of objects before the page."""
    cursor_param: str = "cursor"
    """`cursor`: the parameter with the cursor."""
    next: str | None = None
    """`cursor`, `url`: the keys in the answer that lead to the next cursor or address, such as `meta.next`."""
    total: str | None = None
    """The keys in the answer that lead to the number of all objects; null: the answer has none."""

    @model_validator(mode="after")
    def _check_next(self) -> Paging:
        if self.by in ("cursor", "url") and self.next is None:
            raise PydanticCustomError("next", "by: {by} must have the key next beside it", {"by": self.by})
        return self


class TableSettings(Section):
    """Says what rows of a table are, and what is made of them."""

    table_schema: TableSchema | None = Field(default=None, alias="schema")
    """The types of its columns; null: all of them stay text."""
    key: Names = ()
    """The columns that identify a row of a window: of two with the same key the one stays that was collected last, even
    if what it says is older, and of one answer that with the highest cursor; none: a window that comes again replaces
    the older one."""
    steps: tuple[str | dict[str, Any], ...] = ()
    """The steps that its rows go through, in their order: `module:function`, or a mapping of the name of a step (sql,
    deduplicate, enrich, check, function) to its options."""
    vanished_rows: Vanished | None = None
    """What becomes of rows of a window that its source has no longer: they stay (keep), stay with the time in
    `vanished_at` (mark), or are removed (delete); null: delete without a key, or where the source gives all rows each
    time, else keep. With a cursor it is refused; files that share a window are only ever merged (keep, with a key)."""
    vanished_windows: Literal["keep", "delete"] = "keep"
    """For files: what becomes of windows of which no file has a row any more. In a window that another file has rows
    of, the rows of a file that is gone stay."""
    look_back: Number = Field(default=0.0, ge=0)
    """With a cursor that schema declares as a number, date or timestamp: how late rows may come. They are asked for
    again up to so far before the newest one: seconds for timestamps, days for dates, else a number."""
    keep_days: Number | None = Field(default=None, ge=1)
    """Days for which windows that are named by a day, a month or a year are kept, and before which none is collected;
    null: for ever."""
    expect: Literal["hourly", "daily", "weekly", "monthly"] | None = None
    """How often the table is given new rows. When it is late, a run raises the event
    `executor-adapter.table.late`."""

    def relative_to(self, directory: Path) -> Self:
        """Return the settings with the paths of SQL files made relative to `directory`."""
        return self.model_copy(update={"steps": tuple(_relative(each, directory) for each in self.steps)})


def _relative(step: str | dict[str, Any], directory: Path) -> str | dict[str, Any]:
    is_file = isinstance(step, dict) and str(step.get("sql")).endswith(".sql")
    return {"sql": str(directory / step["sql"])} if is_file else step  # type: ignore[index]


class CursorSettings(TableSettings):
    """Says how a source is asked for what is new."""

    cursor: str | None = None
    """The column whose highest value is where the next run goes on: `:since` of a query, `{since}` of a request, or
    `since` of a function. It needs a `key`, by which rows that come again are merged; null: each run gets all rows, or
    of a request with `{since}` those of each UTC day."""
    start: str | None = Field(default=None, coerce_numbers_to_str=True)
    """With `cursor`: the value from which the first run asks; null: from the beginning. A request needs it."""


class FileTable(TableSettings, Format):
    """Describes one table in a file, or in files of the same kind."""

    file: str = Field(min_length=1, description="the path or pattern of a file, or its URL")
    """CSV, NDJSON, JSON or Parquet, also in ZIP or gzip: the path or pattern (`*.csv`) below the package or directory,
    or a URL (`s3://bucket/*.csv`)."""
    partition: Names = ()
    """Columns whose values divide the table into windows; none: each file of a pattern is a window, and a single file
    is the window `all`."""
    period: Literal["year", "month", "day"] | None = None
    """Of the one column in `partition`, a date, only so much makes the window; null: all of it."""
    windows: Names | None = None
    """The windows to collect; null: all."""


class RestResource(CursorSettings, Format):
    """Describes one resource of a REST API: a list of objects, read page by page.

    In `path` and `params`, `{since}` and `{until}` stand for the bounds of a window, `{last}` for the last
    moment before `until`, and `{id}` for each id of the resource that `for_each` names. In the path they are quoted.
    """

    path: str = Field(min_length=1, description="the path below the tool's url")
    params: dict[str, str] = Field(default_factory=dict)
    """The query of the request."""
    key: Names = ("id",)
    """The fields that identify an object, with `for_each` beside `parent_id`; the first one is what `{id}` stands
    for in a resource of `for_each`."""
    paging: Paging | None = None
    """How its pages are asked for; null: as the tool says."""
    for_each: str | None = None
    """Another resource, without a cursor: there is one request, with `{id}`, for each of its objects."""


class SqlTable(CursorSettings):
    """Describes what is read from a database: a table, or the rows of a query."""

    table: str | None = None
    """The table, as `name` or `schema.name`."""
    query: str | None = None
    """The query instead of a table, a SELECT; `:since` and `:until` in it stand for the bounds of the window."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.table is None) == (self.query is None):
            raise PydanticCustomError("source", "must have one of the keys table and query")
        if self.query is not None and not _READS.match(self.query):
            raise PydanticCustomError("source", "query must begin with SELECT or WITH: sources are only read")
        return self


class FunctionTable(CursorSettings):
    """Describes what is called for the objects of a table."""

    function: str = Field(
        pattern=r"^[\w.]+:[\w.]+$", description="the function, as module:name; it returns an iterable of objects"
    )
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What it is called with by name. It is also given `since` and `until`, where it has such parameters."""
