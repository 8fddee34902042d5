"""Lands a window of a table, whatever its source is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from executor_adapter.config import FilesTool, FunctionTool, RestTool, SqlTool, Tool
from executor_adapter.pipeline.errors import configuration_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.landing import Landing, Window, find_landing


def land(
    root: Path,
    tool_name: str,
    tool: Tool,
    table: str,
    window: Window,
    *,
    known_parents: Collection[str] = (),
    is_over: bool = False,
) -> Landing:
    """Land one window of a table of a tool; the body of a job in a thread.

    Args:
        root: the folder of the lake.
        tool_name: the name of the tool.
        tool: one of the tools with a source.
        table: the name of the table or resource.
        window: the window; for files one of `find_files`.
        known_parents: REST: ids of the resource that `for_each` names for which nothing is asked.
        is_over: REST: whether the window does not change any more: a landing that is there is returned, and the API is
            not asked again.

    Raises:
        DataCollectionException: see the source.
    """

    # Imported here, because a job needs one source, and each has libraries of its own.
    match tool:
        case FilesTool():
            from executor_adapter.pipeline.sources.files import land_file

            return land_file(root, tool_name, tool, table, window)
        case RestTool():
            from executor_adapter.pipeline.sources.rest.resource import fingerprint_of, land_resource

            known = is_over and find_landing(root, tool_name, table, window, fingerprint_of(tool, table, window))
            if known:
                log("%s/%s %s: is over, and not asked for again", tool_name, table, window.name)
                return known
            return land_resource(root, tool_name, tool, table, window, known_parents=known_parents)
        case SqlTool():
            from executor_adapter.pipeline.sources.sql import land_query

            return land_query(root, tool_name, tool, table, window)
        case FunctionTool():
            from executor_adapter.pipeline.sources.functions import land_function

            return land_function(root, tool_name, tool, table, window)
        case _:
            raise configuration_error(f"tools.{tool_name} has no source: set source to files, rest, sql or function")
