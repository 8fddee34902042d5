"""What all tables have, whatever their source is: types, steps, measures, and how long their rows are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from executor_adapter.config.schemas import TableSchema
from executor_adapter.config.sections import Names, Section
from executor_adapter.job import Number

Vanished = Literal["keep", "mark", "delete"]
Measure = Literal["count", "sum", "min", "max", "mean"]


class TableSettings(Section):
    """Says what rows of a table are, and what is made of them."""

    table_schema: TableSchema | None = Field(default=None, alias="schema")
    """The types of its columns; null: all of them stay text."""
    key: Names = ()
    """The columns that identify a row: a row that comes again takes the place of the older one; none: a window that
    comes again replaces the older one."""
    steps: tuple[str | dict[str, Any], ...] = ()
    """The steps that its rows go through, in their order: `module:function`, or a mapping of the name of a step (sql,
    deduplicate, enrich, check, function) to its options."""
    version: str = ""
    """Change it where the code of a step has changed: the table is then processed again."""
    group_by: Names = ()
    """The columns whose values make the groups of the measures; none: all rows are one group."""
    measures: dict[str, tuple[str, Measure]] = Field(default_factory=dict)
    """Measures of the rows that went through the steps: name: [column, count, sum, min, max or mean]."""
    vanished_rows: Vanished | None = None
    """What becomes of rows that the source has no longer: they stay (keep), stay with the time in `vanished_at` (mark),
    or are removed (delete); null: delete where the source gives all rows each time, else keep with a key. With a
    cursor it is refused."""
    vanished_windows: Vanished = "keep"
    """What becomes of windows that the source has no longer, likewise; for files."""
    look_back: Number = Field(default=0.0, ge=0)
    """With a cursor: how late rows may come. They are asked for again up to so far before the newest one: seconds for
    moments, days for dates, else a number."""
    keep_days: Number | None = Field(default=None, ge=1)
    """Days for which windows that are named by a day, a month or a year are kept, and before which none is collected;
    null: for ever."""
    expect: Literal["hourly", "daily", "weekly", "monthly"] | None = None
    """How often the table is given new rows. When it is late, a run raises the event
    `executor-adapter.table.late`."""

    def relative_to(self, directory: Path) -> Self:
        """Return the settings with the paths of SQL files made relative to `directory`."""
        return self.model_copy(update={"steps": tuple(_relative(each, directory) for each in self.steps)})


class CursorSettings(TableSettings):
    """Says how a source is asked for what is new."""

    cursor: str | None = None
    """The column whose highest value is where the next run goes on: `:since` of a query, `{since}` of a request, or
    `since` of a function; null: each run gets all rows, or of a request with `{since}` those of each UTC day."""
    start: str | None = None
    """With `cursor`: the value from which the first run asks; null: from the beginning. A request needs it."""


def _relative(step: str | dict[str, Any], directory: Path) -> str | dict[str, Any]:
    is_file = isinstance(step, dict) and str(step.get("sql")).endswith(".sql")
    return {"sql": str(directory / step["sql"])} if is_file else step  # type: ignore[index]
