"""The job tasks of a pipeline: collection runs in threads, since it mostly waits; processing in processes."""

from __future__ import annotations

from datetime import date
from typing import Any

from executor_adapter.pipeline import collecting, processing, upkeep
from executor_adapter.pipeline.flows import summaries
from executor_adapter.pipeline.sources.landing import Window
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.prefect import job_task

OF_TABLE: dict[str, Any] = {"tool_name": "{table.tool_name}", "persist_result": False}
"""Options of the job tasks of a table: their results are what they have written."""
COLLECTION: dict[str, Any] = {"pool": "thread", "job_type": "collection", **OF_TABLE}


@job_task(name="find windows", task_run_name="find windows of {table}", **COLLECTION)
def find_windows(table: ConfiguredTable, since: date | None, until: date | None) -> list[Window]:
    """Return the windows of a table that are to be collected."""
    return collecting.find_windows(table, since, until)


@job_task(name="collect windows", task_run_name="collect {table} {subject}", **COLLECTION)
def collect_windows(table: ConfiguredTable, windows: list[Window], subject: str, again: bool) -> dict[str, Any]:
    """Land windows and store their rows."""
    return collecting.collect_windows(table, windows, again=again)


@job_task(name="settle windows", task_run_name="settle windows of {table}", **COLLECTION)
def settle_windows(table: ConfiguredTable, present: list[str]) -> dict[str, Any]:
    """Apply the table's policy to the windows that its files have no longer."""
    return {"gone": upkeep.settle_table(table, present)}


@job_task(
    pool="process",
    job_type="processing",
    name="process windows",
    task_run_name="process {table} {subject}",
    **OF_TABLE,
)
def process_windows(table: ConfiguredTable, windows: list[str], subject: str, again: bool) -> dict[str, Any]:
    """Send windows through the table's steps."""
    return processing.process_windows(table, windows, again=again)


summarise = job_task(
    pool="process",
    job_type="report",
    retry_attempts=0,  # It only reads what is there, so that it would fail again.
    name="summarise",
    task_run_name="summarise {tool}",
    **OF_TABLE | {"tool_name": "{tool}"},
)(summaries.summarise_tables)
