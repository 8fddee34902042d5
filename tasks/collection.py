"""The job tasks of collection: in threads, since they wait for others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from executor_adapter.config.settings import FilesTool, RestTool
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

collect_resource = job_task(
    pool="thread",
    job_type="collection",
    name="collect resource",
    task_run_name="collect {tool_name}/{table}",
    tool_name="{tool_name}",
    priority=-1,
    cache_policy=NO_CACHE,
    persist_result=False,
)(landing.collect_resource)


def collect(run: Run) -> None:
    """Collect all that the run's tools have. A job that fails is on the board, and holds up no other."""
    run.stage(0.0, 0.5)
    with run.executor("collection"):
        finding = dict(_find_all(run))
        collecting: list[Future] = []
        for found, windows in run.as_done(list(finding)):
            collecting += _collect_windows(run, finding[found], windows or {})
        # Histories last: they hold the more of this run the later they are asked.
        collecting += _collect_resources(run)
        for _ in run.as_done(collecting):
            pass


def _find_all(run: Run) -> Iterator[tuple[Future, dict[str, Any]]]:
    for name in run.tools:
        tool = run.settings.tools[name]
        for table in tool.tables if isinstance(tool, FilesTool) else ():
            arguments = {"tool_name": name, "tool": tool, "table": table}
            yield run.submit(find_windows, tool=name, stage="find", subject=table, arguments=arguments), arguments


def _collect_windows(run: Run, found: dict[str, Any], windows: dict[str, int]) -> list[Future]:
    return [
        run.submit(
            collect_window,
            tool=found["tool_name"],
            stage="collect",
            subject=f"{found['table']} {window}",
            arguments=found | {"window": window, "root": run.settings.lake},
        )
        for window in windows
    ]


def _collect_resources(run: Run) -> Iterator[Future]:
    for name in run.tools:
        tool = run.settings.tools[name]
        if not isinstance(tool, RestTool):
            continue
        tool, headers = (tool, dict[str, str]()) if tool.url else _in_force(tool)
        for table in tool.resources:
            arguments = {"tool_name": name, "tool": tool, "table": table, "root": run.settings.lake, "headers": headers}
            yield run.submit(collect_resource, tool=name, stage="collect", subject=table, arguments=arguments)


def _in_force(tool: RestTool) -> tuple[RestTool, dict[str, str]]:
    """The tool with the address of the Prefect API that this run uses, and the headers that API asks for."""
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
