"""The job tasks of collection. They run in threads, because they mostly wait for files and servers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from executor_adapter.config import FilesTool, RestTool
from executor_adapter.prefect import job_task
from tasks import landing
from tasks.reporting import Future, Run

find_windows = job_task(
    pool="thread",
    job_type="collection",
    name="find windows",
    task_run_name="find windows of {tool_name}/{table}",
    tool_name="{tool_name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)(landing.find_windows)

collect_window = job_task(
    pool="thread",
    job_type="collection",
    name="collect window",
    task_run_name="collect {tool_name}/{table} {window}",
    tool_name="{tool_name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)(landing.collect_window)


def _collect_resource(tool_name: str, tool: RestTool, table: str, root: Path) -> landing.Result:
    """Copy the objects of a resource into the lake; a tool without a URL reads the API of this run's Prefect server."""
    # The headers hold the server's credentials, so they are made here and are no argument of the job.
    tool, headers = (tool, dict[str, str]()) if tool.url else _with_prefect_api(tool)
    return landing.collect_resource(tool_name, tool, table, root, headers)


collect_resource = job_task(
    pool="thread",
    job_type="collection",
    name="collect resource",
    task_run_name="collect {tool_name}/{table}",
    tool_name="{tool_name}",
    priority=-1,
    cache_policy=NO_CACHE,
    persist_result=False,
)(_collect_resource)


def collect(run: Run) -> None:
    """Collect everything that the run's tools describe. A failed job is shown in the table and stops no other job."""
    run.begin_stage(0.0, 0.5)
    with run.executor("collection"):
        searches = dict(_submit_searches(run))
        collections: list[Future] = []
        for search, windows in run.as_completed(list(searches)):
            collections += _submit_windows(run, searches[search], windows or {})
        # Resources come last: one of them is the history of this very run, which holds more the later it is read.
        collections += _submit_resources(run)
        for _ in run.as_completed(collections):
            pass


def _submit_searches(run: Run) -> Iterator[tuple[Future, dict[str, Any]]]:
    for name in run.tools:
        tool = run.settings.tools[name]
        for table in tool.tables if isinstance(tool, FilesTool) else ():
            arguments = {"tool_name": name, "tool": tool, "table": table}
            yield run.submit(find_windows, tool=name, stage="find", subject=table, arguments=arguments), arguments


def _submit_windows(run: Run, search: dict[str, Any], windows: dict[str, int]) -> list[Future]:
    return [
        run.submit(
            collect_window,
            tool=search["tool_name"],
            stage="collect",
            subject=f"{search['table']} {window}",
            arguments=search | {"window": window, "root": run.settings.lake},
        )
        for window in windows
    ]


def _submit_resources(run: Run) -> Iterator[Future]:
    for name in run.tools:
        tool = run.settings.tools[name]
        if not isinstance(tool, RestTool):
            continue
        for table in tool.resources:
            arguments = {"tool_name": name, "tool": tool, "table": table, "root": run.settings.lake}
            yield run.submit(collect_resource, tool=name, stage="collect", subject=table, arguments=arguments)


def _with_prefect_api(tool: RestTool) -> tuple[RestTool, dict[str, str]]:
    """Return the tool with the address of this run's Prefect API, and the headers that the API requires."""
    with get_client(sync_client=True) as client:
        url = str(client.api_url).rstrip("/")
    settings = get_current_settings()
    headers = dict(settings.client.custom_headers)
    if settings.api.auth_string:
        token = base64.b64encode(settings.api.auth_string.get_secret_value().encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    elif settings.api.key:
        headers["Authorization"] = f"Bearer {settings.api.key.get_secret_value()}"
    return tool.model_copy(update={"url": url}), headers
