"""The flows: collection, processing, both with a report, and maintenance.

The types of their parameters give the form in Prefect's UI its choices and its limits; Prefect takes the description of
each from the docstring of its flow. Annotations are no text here, as `from __future__ import annotations` makes them: a
flow that is served is sent without the names that its types alone use.
"""

from datetime import date
from typing import Annotated, Any

from prefect import flow
from prefect.context import TagsContext
from prefect.logging import get_run_logger
from pydantic import Field

from executor_adapter.config import Stage, load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.executor import JobExecutor
from executor_adapter.pipeline.flows import maintenance
from executor_adapter.pipeline.flows.run import JobsFailedError, Run, run_name
from executor_adapter.pipeline.flows.steps import Steps
from executor_adapter.pipeline.tables import check_range, configured_tables, import_references, select_tables
from executor_adapter.pipeline.upkeep import check_window


def offer_configured_tools(schema: dict[str, Any]) -> None:
    """Add the tools and tables that are configured now to a JSON schema, as the choices of the form."""
    try:
        settings = load_config()
        tables = [table.full_name for tool in settings.tools for table in configured_tables(settings, tool)]
    except ConfigurationError:
        return  # The flow reports it when it runs.
    if settings.tools:
        schema["enum"] = [*settings.tools, *tables]


ToolName = Annotated[str, Field(json_schema_extra=offer_configured_tools)]
"""The type of a flow's parameter `tools`: its form offers what is configured when the flow is deployed."""
Days = Annotated[int, Field(ge=1, le=3650)]


@flow(name="collection", flow_run_name=run_name)
def collection_flow(
    tools: list[ToolName] | None = None,
    since: date | None = None,
    until: date | None = None,
    config: str | None = None,
) -> None:
    """Collect rows from the tools into the lake.

    Args:
        tools: The tools, or tables as tool.table, to collect. Empty: all that are configured.
        since: The first day of a range that is collected again (backfill). Empty: only what is new is collected.
        until: The first day after that range. Empty: up to now.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration or the range is wrong; nothing was started.
        JobsFailedError: a job failed; the rows that other jobs collected are kept.
    """
    _do(["collection"], tools, config, since=since, until=until)


@flow(name="processing", flow_run_name=run_name)
def processing_flow(
    tools: list[ToolName] | None = None, again: bool = False, window: str | None = None, config: str | None = None
) -> None:
    """Process the rows in the lake that are not processed yet.

    Args:
        tools: The tools, or tables as tool.table, whose rows are processed. Empty: all that are configured.
        again: Whether windows are processed again that are processed already.
        window: The only window that is processed. Empty: all.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a job failed or rows were lost; the results of the other jobs are kept.
    """
    _do(["processing"], tools, config, again=again, window=window)


@flow(name="pipeline", flow_run_name=run_name)
def pipeline_flow(
    tools: list[ToolName] | None = None,
    since: date | None = None,
    until: date | None = None,
    config: str | None = None,
) -> None:
    """Collect from the tools, process the rows and report. Each table is processed once its own rows are collected.

    Args:
        tools: The tools, or tables as tool.table, to collect. Empty: all that are configured.
        since: The first day of a range that is collected again (backfill). Empty: only what is new is collected.
        until: The first day after that range. Empty: up to now.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration or the range is wrong; nothing was started.
        JobsFailedError: a job failed or rows were lost; the results of the other jobs are kept.
    """
    _do(["collection", "processing"], tools, config, since=since, until=until)


def _do(stages: list[Stage], names: list[str] | None, config: str | None, **asked: Any) -> None:
    settings = load_config(config)
    tables = select_tables(settings, names)
    check_range(tables, asked.get("since"), asked.get("until"))
    for problem in import_references(tables):
        raise problem
    if (window := asked.get("window")) is not None:
        check_window(window, (name for table in tables for name in table.raw.windows()))
    run = Run(settings, tables)
    # For each task run with a tag, as those of its flow run, Prefect asks the server for a slot, though no limit is
    # set. A server on SQLite is often locked then, and refuses, and Prefect waits two seconds.
    with TagsContext(current_tags=set()):
        run.finish(Steps(run, stages, **asked).do())


@flow(name="maintenance", flow_run_name=run_name)
def maintenance_flow(keep_days: Days = 30, config: str | None = None) -> None:
    """Clean up the store, the outbox, results of Prefect and the lake, and end task runs that outlived their flow run.

    Args:
        keep_days: Days for which finished jobs, unsent states, results, unfinished files and replaced landings stay.
            Windows of tables stay as the configuration says for each table.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a part failed; the others were done.
    """
    settings = load_config(config)
    logger = get_run_logger()
    tables = [table for tool in settings.tools for table in configured_tables(settings, tool)]
    with JobExecutor(settings.executor.max_workers, config=settings):
        parts = [
            maintenance.clean_store.submit(settings.store.url, keep_days),
            maintenance.clean_the_outbox.submit(keep_days),
            maintenance.end_lost_task_runs.submit(),
            maintenance.clean_results.submit(keep_days),
            maintenance.clean_lake_files.submit(settings.lake, keep_days),
            *(maintenance.keep.submit(table) for table in tables if table.settings.keep_days is not None),
        ]
        for part in parts:
            part.wait()
            if part.state.is_completed():
                logger.info("%s", part.result())
    failed = [str(part.state.message) for part in parts if not part.state.is_completed()]
    if failed:
        raise JobsFailedError(f"{len(failed)} of {len(parts)} parts failed: {'; '.join(failed)}")
