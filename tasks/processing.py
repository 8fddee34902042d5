"""The job tasks of processing: in processes, since they compute."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from executor_adapter.prefect import job_task
from tasks import refining
from tasks.lake import count
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
    """Process each partition that the run's tools have in the lake, and say what they tell: see Run.summarise.

    What was processed before is left as it is.
    """
    run.processes = True
    run.stage(0.5, 0.9)
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
            if count(raw)  # a day on which nothing happened is no work
        ]
        for _ in run.as_done(processing):
            pass
        return run.summarise()
