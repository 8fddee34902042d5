"""Checks the configured tools and tables against the rules that exist."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from executor_adapter.config import FilesTool, FileTable, RestResource, RestTool, Settings, Tool
from executor_adapter.exceptions import ConfigurationError
from tasks import rules


def schemas_of(tool: Tool) -> dict[str, str | None]:
    """Return the tool's tables, each with the name of its rules."""
    tables: Mapping[str, FileTable | RestResource] = {}
    if isinstance(tool, FilesTool):
        tables = tool.tables
    elif isinstance(tool, RestTool):
        tables = tool.resources
    return {name: table.schema_name for name, table in tables.items()}


def select_tools(settings: Settings, names: list[str] | None = None) -> tuple[str, ...]:
    """Return the tools called `names`, or all configured tools, after checking that the flows can use them.

    Raises:
        ConfigurationError: no tool is configured, a name is unknown, or a table names unknown rules.
    """
    if not settings.tools:
        raise ConfigurationError("tools is missing: describe at least one tool in config.yaml")
    for name in names or ():
        if name not in settings.tools:
            raise ConfigurationError(f"tools: {name!r} is not described: must be one of {', '.join(settings.tools)}")
    selected = tuple(names or (name for name, tool in settings.tools.items() if schemas_of(tool)))
    for name in selected:
        tool = settings.tools[name]
        kind = "tables" if isinstance(tool, FilesTool) else "resources"
        for table, schema in schemas_of(tool).items():
            if schema is not None and schema not in rules.NAMES:
                raise ConfigurationError(
                    f"tools.{name}.{kind}.{table}.schema: {schema!r} is not allowed: {_suggestion(schema)}"
                )
    return selected


def _suggestion(schema: str) -> str:
    matches = difflib.get_close_matches(schema, rules.NAMES, n=1)
    hint = f"did you mean {matches[0]}? " if matches else ""
    return f"{hint}must be one of {', '.join(rules.NAMES)}"
