"""Lands a window of a table, whatever its source is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from executor_adapter.config import FilesTool, FunctionTool, RestTool, SqlTool, Tool
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.sources.landing import Landing
from executor_adapter.pipeline.sources.windows import Window


def land(
    root: Path,
    tool_name: str,
    tool: Tool,
    table: str,
    window: Window,
    *,
    headers: Mapping[str, str] | None = None,
) -> Landing:
    """Land one window of a table of a tool; the body of a job in a thread.

    Args:
        root: the folder of the lake.
        tool_name: the name of the tool.
        tool: one of the tools with a source.
        table: the name of the table or resource.
        window: the window; for files one of `find_files`.
        headers: REST: further headers, for the API's own origin alone.

    Raises:
        DataCollectionException: see the source.
    """
    # Imported here, because a job needs one source, and each has libraries of its own.
    match tool:
        case FilesTool():
            from executor_adapter.pipeline.sources.files import land_file

            return land_file(root, tool_name, tool, table, window)
        case RestTool():
            from executor_adapter.pipeline.sources.rest.resource import land_resource

            return land_resource(root, tool_name, tool, table, window, headers=headers)
        case SqlTool():
            from executor_adapter.pipeline.sources.sql import land_query

            return land_query(root, tool_name, tool, table, window)
        case FunctionTool():
            from executor_adapter.pipeline.sources.functions import land_function

            return land_function(root, tool_name, tool, table, window)
        case _:
            raise DataCollectionException(
                f"tools.{tool_name} has no source: set source to files, rest, sql or function",
                error_code="CONFIGURATION_ERROR",
            )
