"""What the configuration says of tools and tables, in the words of rules."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from executor_adapter.config.settings import FilesTool, FileTable, RestResource, RestTool, Settings, Tool
from executor_adapter.exceptions import ConfigurationError
from tasks import rules


def schemas_of(tool: Tool) -> dict[str, str | None]:
    """The tool's tables, each with the name of its rules."""
    tables: Mapping[str, FileTable | RestResource] = {}
    if isinstance(tool, FilesTool):
        tables = tool.tables
    elif isinstance(tool, RestTool):
        tables = tool.resources
    return {name: table.schema_name for name, table in tables.items()}


def check_tools(settings: Settings, names: list[str] | None = None) -> tuple[str, ...]:
    """The tools called `names`, or all there are, once it is sure that the flows can work with them.

    Raises:
        ConfigurationError: there is none, no such, or one of its tables has rules that no one knows.
    """
    if not settings.tools:
        raise ConfigurationError("tools is missing: describe at least one tool in config.yaml")
    for name in names or ():
        if name not in settings.tools:
            raise ConfigurationError(f"tools: {name!r} is not described: must be one of {', '.join(settings.tools)}")
    chosen = tuple(names or (name for name, tool in settings.tools.items() if schemas_of(tool)))
    for name in chosen:
        tool = settings.tools[name]
        kind = "tables" if isinstance(tool, FilesTool) else "resources"
        for table, schema in schemas_of(tool).items():
            if schema is not None and schema not in rules.NAMES:
                raise ConfigurationError(
                    f"tools.{name}.{kind}.{table}.schema: {schema!r} is not allowed: {_known(schema)}"
                )
    return chosen


def _known(schema: str) -> str:
    near = difflib.get_close_matches(schema, rules.NAMES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}must be one of {', '.join(rules.NAMES)}"
