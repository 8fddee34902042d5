"""Collects rows from the tools into the lake. Each window of a table, such as a file, is a job in a thread.

    python -m flows.collection

The package's `collection_flow` does more: ranges of days again, small files together, and resources with `for_each`.
"""

# No `from __future__ import annotations`: a flow that is served is sent without the names that its types alone use.
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger

from executor_adapter import JobExecutor
from executor_adapter.config import load_config
from executor_adapter.pipeline import ConfiguredTable, Window, collect_window, find_windows, select_tables
from executor_adapter.pipeline.flows import JobsFailedError, ToolName
from executor_adapter.prefect import job_events, job_report, job_task

# Their time limit and their retries are in config.yaml: section `collection`, or `job` of the tool.
JOB: dict[str, Any] = {"pool": "thread", "job_type": "collection", "tool_name": "{table.tool_name}"}


@job_task(task_run_name="find {table}", persist_result=False, **JOB)
def find(table: ConfiguredTable) -> list[Window]:
    """Return the windows of a table that are to be collected."""
    return find_windows(table)


@job_task(task_run_name="collect {table} {window.name}", persist_result=False, **JOB)
def collect(table: ConfiguredTable, window: Window) -> dict[str, Any]:
    """Copy a window from its source, and store its rows in their types; what the lake has already stays as it is."""
    return collect_window(table, window)


@flow(name="collection")
def collection_flow(tools: list[ToolName] | None = None, config: str | None = None) -> None:
    """Collect rows from the tools into the lake.

    Args:
        tools: The tools, or tables as tool.table, to collect. Empty: all that are configured.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        JobsFailedError: a job failed; the rows that other jobs collected are kept.
    """
    settings = load_config(config)
    tables = select_tables(settings, tools)
    executor = JobExecutor(settings.collection.max_concurrent_jobs, config=settings.for_stage("collection"))
    with executor, job_report("collection"), job_events():
        searches = [find.submit(table) for table in tables]
        wait(searches)
        found = [(table, search) for table, search in zip(tables, searches, strict=True) if search.state.is_completed()]
        jobs = [collect.submit(table, window) for table, search in found for window in search.result()]
        wait(jobs)
    rows = sum(job.result()["records_collected"] for job in jobs if job.state.is_completed())
    get_run_logger().info("%d new rows in %d tables", rows, len(found))
    ended: list[PrefectFuture[Any]] = [*searches, *jobs]
    if problems := [str(job.state.message) for job in ended if not job.state.is_completed()]:
        raise JobsFailedError("; ".join(problems))


if __name__ == "__main__":
    collection_flow()
