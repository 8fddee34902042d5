"""A table as the configuration describes it, and the tables of the lake that hold its rows.

raw        rows as the source had them, in their declared types
rejected   what is not a row, does not fit its types, or was rejected by a step, with the reasons
processed  rows that went through the steps
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from executor_adapter.config import (
    Column,
    FilesTool,
    FileTable,
    Format,
    RestResource,
    Settings,
    TableSchema,
    TableSettings,
    Tool,
)
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import did_you_mean
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.lake.table import LakeTable, is_expired
from executor_adapter.pipeline.steps import Step, read_step

PARENT_ID = "parent_id"
"""The column of a resource with `for_each`: the id for which an object was asked."""


@dataclass(frozen=True, kw_only=True)
class ConfiguredTable:
    """One table of a tool. Picklable; it opens nothing until it is used."""

    lake: Path
    """The folder of the lake."""
    tool_name: str
    tool: Tool
    name: str

    def __str__(self) -> str:
        return f"{self.tool_name}/{self.name}"

    @property
    def full_name(self) -> str:
        """What steps and commands call it."""
        return f"{self.tool_name}.{self.name}"

    @property
    def key(self) -> str:
        """Where the configuration describes it."""
        kind = "resources" if isinstance(self.settings, RestResource) else "tables"
        return f"tools.{self.tool_name}.{kind}.{self.name}"

    @cached_property
    def settings(self) -> TableSettings:
        """What the configuration says of it."""
        return _tables_of(self.tool)[self.name]

    @property
    def format(self) -> Format:
        """How what was landed becomes rows."""
        settings: Any = self.settings
        return settings if isinstance(settings, Format) else Format()

    @property
    def of_files(self) -> dict[str, Any]:
        """What the settings of a table in files say beside their format: `partition`, `period`."""
        return self.settings.model_dump(include={"partition", "period"})

    @property
    def is_pattern(self) -> bool:
        """Whether its rows are in several files."""
        return isinstance(self.settings, FileTable) and any(each in self.settings.file for each in "*?[")

    @property
    def is_undated(self) -> bool:
        """Whether no window has a day, a month or a year: it is all that its source has, or a file with a suffix."""
        settings = self.settings
        if not isinstance(settings, FileTable):
            return self.cursor is None and not self.is_dated
        return not settings.partition and (not self.is_pattern or "." in settings.file.rpartition("/")[2])

    @property
    def cursor(self) -> str | None:
        """The column by which the source is asked for what is new."""
        return getattr(self.settings, "cursor", None)

    @property
    def parent(self) -> str | None:
        """The resource for each of whose objects this one is asked for."""
        return getattr(self.settings, "for_each", None)

    @property
    def row_key(self) -> tuple[str, ...]:
        """The columns that identify a row; objects of different parents may have the same id."""
        key = self.settings.key
        return key if self.parent is None or not key else tuple(dict.fromkeys((PARENT_ID, *key)))

    @cached_property
    def bounds(self) -> frozenset[str]:
        """The bounds of a window that the request of a resource asks for: `since`, `until`, `last`."""
        settings = self.settings
        if not isinstance(settings, RestResource):
            return frozenset()
        request = json.dumps([settings.path, settings.params])
        return frozenset(name for name in ("since", "until", "last") if f"{{{name}}}" in request)

    @property
    def is_dated(self) -> bool:
        """Whether it is a resource that is asked for by day: its request has a bound of the window, or its parent's."""
        settings = self.settings
        if not isinstance(settings, RestResource) or self.cursor is not None:
            return False
        return bool(self.bounds) or (self.parent is not None and replace(self, name=self.parent).is_dated)

    @cached_property
    def schema(self) -> TableSchema | None:
        """The declared types; columns of the key must have a value, since rows without one could not be told apart."""
        declared = self.settings.table_schema
        columns = {} if declared is None else {**declared.columns}
        for name in self.row_key:
            column = columns.get(name) or Column(type="text")
            columns[name] = column.model_copy(update={"nullable": False})
        return TableSchema(columns=columns) if columns else None

    def check(self) -> None:
        """Check what the settings of a table are only together.

        Raises:
            ConfigurationError: they contradict one another.
        """
        settings = self.settings
        _ = self.read_steps, self.raw  # They check themselves.
        if isinstance(settings, FileTable) and settings.period is not None and len(settings.partition) != 1:
            raise ConfigurationError(f"{self.key}: with period, partition must be one column, a date")
        missing = {"look_back": "a cursor", "start": "a cursor"} if self.cursor is None else {}
        if not isinstance(settings, FileTable):
            missing["vanished_windows"] = "files"
        for name in missing.keys() & settings.model_fields_set:
            raise ConfigurationError(f"{self.key}: {name} does nothing without {missing[name]}: leave it out")
        column = self.schema.columns.get(self.cursor or "") if self.schema else None
        if self.cursor and settings.look_back and (column is None or column.kind in {"text", "json", "boolean"}):
            raise ConfigurationError(
                f"{self.key}: look_back needs a number, date or timestamp: declare the type of {self.cursor} in schema"
            )
        is_asked_from = (
            self.bounds == {"since"} and getattr(settings, "start", None) is not None and self.parent is None
        )
        if isinstance(settings, RestResource) and self.cursor is not None and not is_asked_from:
            raise ConfigurationError(
                f"{self.key}: with cursor, start must be set, the request must have {{since}} and no other bound, and "
                "for_each must not be set"
            )
        if self.parent is not None and "{id}" not in json.dumps(settings.model_dump(include={"path", "params"})):
            raise ConfigurationError(
                f"{self.key}: for_each needs {{id}} in path or params, or all objects of {self.parent} ask for the same"
            )
        if self.parent is not None and replace(self, name=self.parent).cursor is not None:
            raise ConfigurationError(
                f"{self.key}: for_each cannot be {self.parent}, which has a cursor: older objects would be left out"
            )

    def wants(self, window: str, today: date) -> bool:
        """Return whether a window is one of those that are selected, and not so old that it would be removed again."""
        settings = self.settings
        if isinstance(settings, FileTable) and settings.windows is not None and window not in settings.windows:
            return False
        return settings.keep_days is None or not is_expired(window, today - timedelta(days=settings.keep_days))

    @property
    def read_steps(self) -> list[Step]:
        """The steps of its rows: see `read_step`. Of several with one name the later ones are numbered."""
        found = [read_step(spec, f"{self.key}.steps") for spec in self.settings.steps]
        times = [[each.name for each in found[:place]].count(step.name) for place, step in enumerate(found)]
        return [replace(each, name=f"{each.name} {n + 1}") if n else each for each, n in zip(found, times, strict=True)]

    @property
    def reads(self) -> set[str]:
        """The tables, as `tool.table`, that its steps read."""
        return {name for step in self.read_steps for name in step.reads}

    @cached_property
    def raw(self) -> LakeTable:
        """The rows as the source had them."""
        # Its source may give all rows each time it is asked.
        is_whole = not isinstance(self.tool, FilesTool) and self.cursor is None and not self.is_dated
        vanished = self.settings.vanished_rows or ("delete" if is_whole else None)
        return self._layer("raw", key=self.row_key, cursor=self.cursor, vanished_rows=vanished)

    @cached_property
    def unfit(self) -> LakeTable:
        """What is not a row, or does not fit the schema, with the reasons: windows of their own among the rejects."""
        # Where a part of a window is asked for at a time, the rejects stay of rows that did not come again.
        return self._layer("rejected", key=("key",) if self.cursor else ())

    @property
    def processed(self) -> LakeTable:
        """The rows that went through the steps."""
        return self._layer("processed")

    @property
    def rejects(self) -> LakeTable:
        """The rows that a step has rejected."""
        return self._layer("rejected")

    @property
    def layers(self) -> list[LakeTable]:
        """All of these."""
        return [self.raw, self.processed, self.rejects]

    def _layer(self, layer: str, **options: Any) -> LakeTable:
        return LakeTable(root=self.lake, layer=layer, tool=self.tool_name, name=self.name, **options)


def configured_tables(settings: Settings, tool_name: str) -> list[ConfiguredTable]:
    """Return the tables of a tool, each after the one that it is asked for by; none for a tool without a source.

    Raises:
        ConfigurationError: resources are asked for by each other.
    """
    tool = settings.tools[tool_name]
    names = dict.fromkeys(name for table in _tables_of(tool) for name in _with_parents(tool, table))
    return [ConfiguredTable(lake=settings.lake, tool_name=tool_name, tool=tool, name=name) for name in names]


def select_tables(settings: Settings, names: Collection[str] | None = None) -> list[ConfiguredTable]:
    """Return the tables called `names`, or all, after checking what can be checked without an import.

    Args:
        settings: the configuration.
        names: tables as `tool.table`, or tools, for all of their tables; none: all tables.

    Raises:
        ConfigurationError: no tool is configured, a name is unknown, also one that a step reads, there is no such step,
            or settings contradict one another.
    """
    if not settings.tools:
        raise ConfigurationError("tools is missing: describe at least one tool in config.yaml")
    tables = [table for tool in settings.tools for table in configured_tables(settings, tool)]
    full_names = dict.fromkeys(table.full_name for table in tables)
    known = dict.fromkeys([*settings.tools, *full_names])
    for name in names or ():
        if name not in known:
            meant = did_you_mean(name, known, otherwise="must be one of ")
            raise ConfigurationError(f"{name!r} is not a table, as tool.table, and not a tool: {meant}")
    selected = [table for table in tables if not names or {table.tool_name, table.full_name} & {*names}]
    for table in selected:
        table.check()
        for name in table.reads - full_names.keys():
            meant = did_you_mean(name, full_names, otherwise="must be one of ")
            raise ConfigurationError(f"{table.key}.steps: {name!r} is not a table, as tool.table: {meant}")
    processing_order(selected)
    return selected


def check_range(tables: Sequence[ConfiguredTable], since: date | None, until: date | None) -> None:
    """Refuse a range of days that is none, or that no table has windows of.

    Raises:
        ConfigurationError: it is so.
    """
    if since is not None and until is not None and since >= until:
        raise ConfigurationError(f"until: {until} is not after since, {since}: until is the first day after the range")
    if (since or until) and all(table.is_undated for table in tables):
        names = ", ".join(table.full_name for table in tables)
        said = "a run collects all of them: leave out the range, or set partition, a cursor, or {since} in the request"
        raise ConfigurationError(f"since: no window of {names} is named by a day, a month or a year: {said}")


def processing_order(tables: Iterable[ConfiguredTable]) -> list[list[ConfiguredTable]]:
    """Return tables in groups that can be processed one after another: each table comes after those that it reads.

    Raises:
        ConfigurationError: tables read each other.
    """
    left = {table.full_name: table for table in tables}
    groups = []
    while left:
        ready = [name for name, table in left.items() if not table.reads & left.keys()]
        if not ready:
            raise ConfigurationError(f"steps: {', '.join(left)} read each other: let one of them read raw rows instead")
        groups.append([left.pop(name) for name in ready])
    return groups


def import_references(tables: Iterable[ConfiguredTable]) -> list[ConfigurationError]:
    """Import all that tables and their tools name, as their jobs will, and return what is wrong with it."""
    problems = []
    for key, reference in _references(list(tables)):
        try:
            import_object(reference, key)
        except ConfigurationError as error:
            problems.append(error)
    return problems


def _references(tables: Sequence[ConfiguredTable]) -> Iterator[tuple[str, str]]:
    """Yield what is named as `module:name`, with the key where it stands."""
    for table in tables:
        if (function := getattr(table.settings, "function", None)) is not None:
            yield f"{table.key}.function", function
        yield from ((step.key, step.reference) for step in table.read_steps if step.reference is not None)
    for name, tool in {table.tool_name: table.tool for table in tables}.items():
        if tool.summary is not None:
            yield f"tools.{name}.summary", tool.summary


def _tables_of(tool: Tool) -> Mapping[str, TableSettings]:
    return getattr(tool, "resources", None) or getattr(tool, "tables", {})


def _with_parents(tool: Tool, name: str) -> list[str]:
    names = [name]
    while (parent := getattr(_tables_of(tool)[names[0]], "for_each", None)) is not None:
        if parent in names:
            raise ConfigurationError(f"resources.{parent}.for_each leads back to {parent}: leave one of them out")
        names.insert(0, parent)
    return names
