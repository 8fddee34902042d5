"""The job tasks of processing. They run in processes, because they compute."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from executor_adapter.prefect import job_task
from tasks import refining
from tasks.lake import count_rows
from tasks.options import schemas_of
from tasks.reporting import Run
from tasks.row_balance import raw_partitions

process_partition = job_task(
    pool="process",
    job_type="processing",
    name="process partition",
    task_run_name="process {raw}",
    tool_name="{raw.tool}",
    cache_policy=NO_CACHE,
    persist_result=False,
)(refining.process_partition)


def process(run: Run) -> list[dict[str, Any]]:
    """Process each partition that the run's tools have in the lake, and return the summaries: see `Run.summarise`.

    Partitions that are already processed stay as they are.
    """
    run.processes = True
    run.begin_stage(0.5, 0.9)
    batch_size = run.settings.processing.batch_size
    with run.executor("processing"):
        processing = [
            run.submit(
                process_partition,
                tool=tool,
                stage="process",
                subject=f"{raw.table} {raw.window}",
                arguments={"raw": raw, "schema": schema, "batch_size": batch_size},
            )
            for tool in run.tools
            for table, schema in schemas_of(run.settings.tools[tool]).items()
            for raw in raw_partitions(run.settings.lake, tool, [table])
            if count_rows(raw)  # A day without any event needs no job.
        ]
        for _ in run.as_completed(processing):
            pass
        return run.summarise()
