"""Processes the rows in the lake that are not processed yet. Each window of a table is a job in a process.

    python -m flows.processing

The package's `processing_flow` does more: windows again, small windows together, and summaries of the tools.
"""

# No `from __future__ import annotations`: a flow that is served is sent without the names that its types alone use.
from typing import Any

from prefect import flow
from prefect.futures import wait
from prefect.logging import get_run_logger

from executor_adapter import JobExecutor
from executor_adapter.config import load_config
from executor_adapter.pipeline import (
    ConfiguredTable,
    balance,
    process_windows,
    processing_order,
    select_tables,
    windows_to_process,
)
from executor_adapter.pipeline.flows import JobsFailedError, ToolName
from executor_adapter.prefect import job_events, job_report, job_task


# Its time limit and its retries are in config.yaml: section `processing`, or `job` of the tool.
@job_task(
    pool="process",
    job_type="processing",
    tool_name="{table.tool_name}",
    task_run_name="process {table} {window}",
    persist_result=False,
)
def process(table: ConfiguredTable, window: str) -> dict[str, Any]:
    """Send a window through the steps of its table: each row is then processed, rejected with a reason, or dropped."""
    return process_windows(table, [window])


@flow(name="processing")
def processing_flow(tools: list[ToolName] | None = None, config: str | None = None) -> None:
    """Process the rows in the lake that are not processed yet.

    Args:
        tools: The tools, or tables as tool.table, whose rows are processed. Empty: all that are configured.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        JobsFailedError: a job failed or rows were lost; the results of the other jobs are kept.
    """
    settings = load_config(config)
    tables = select_tables(settings, tools)
    executor = JobExecutor(settings.processing.max_concurrent_jobs, config=settings.for_stage("processing"))
    problems = []
    with executor, job_report("processing"), job_events():
        for group in processing_order(tables):  # A table comes after those that its steps read.
            jobs = [process.submit(table, window) for table in group for window in windows_to_process(table)]
            wait(jobs)
            problems += [str(job.state.message) for job in jobs if not job.state.is_completed()]
    for table in tables:
        rows = balance(table.full_name, [table])
        get_run_logger().info("%s", rows)
        if rows.unprocessed or not rows.holds:
            problems.append(str(rows))
    if problems:
        raise JobsFailedError("; ".join(problems))


if __name__ == "__main__":
    processing_flow()
