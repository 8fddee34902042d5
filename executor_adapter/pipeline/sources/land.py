"""Lands a window of a table, whatever its source is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    headers: Mapping[str, str] | None = None,
    known_parents: Collection[str] = (),
    settle_time: float | None = None,
) -> Landing:
    """Land one window of a table of a tool; the body of a job in a thread.

    Args:
        root: the folder of the lake.
        tool_name: the name of the tool.
        tool: one of the tools with a source.
        table: the name of the table or resource.
        window: the window; for files one of `find_files`.
        headers: REST: further headers, for the API's own origin alone.
        known_parents: REST: ids of the resource that `for_each` names for which nothing is asked.
        settle_time: seconds after the end of a window after which it does not change: a landing that was received later
            is returned, and the source is not asked again; None: it is always asked. For files it has no meaning: those
            that have not changed are never copied again.

    Raises:
        DataCollectionException: see the source.
    """

    def final(fingerprint: str) -> Landing | None:
        found = None if settle_time is None else find_landing(root, tool_name, table, window, fingerprint)
        if found is None or not found.is_final(settle_time or 0.0):
            return None
        log("%s/%s %s: is over, and not asked for again", tool_name, table, window.name)
        return found

    # Imported here, because a job needs one source, and each has libraries of its own.
    match tool:
        case FilesTool():
            from executor_adapter.pipeline.sources.files import land_file

            return land_file(root, tool_name, tool, table, window)
        case RestTool():
            from executor_adapter.pipeline.sources.rest import resource

            return final(resource.fingerprint_of(tool, table, window)) or resource.land_resource(
                root, tool_name, tool, table, window, headers=headers, known_parents=known_parents
            )
        case SqlTool():
            from executor_adapter.pipeline.sources import sql

            return final(sql.fingerprint_of(tool, table, window)) or sql.land_query(
                root, tool_name, tool, table, window
            )
        case FunctionTool():
            from executor_adapter.pipeline.sources import functions

            return final(functions.fingerprint_of(tool, table, window)) or functions.land_function(
                root, tool_name, tool, table, window
            )
        case _:
            raise configuration_error(f"tools.{tool_name} has no source: set source to files, rest, sql or function")
