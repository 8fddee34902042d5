"""The maintenance flow: removes what is old, and ends what was left unfinished."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prefect import flow
from prefect.logging import get_run_logger

from executor_adapter import JobExecutor
from executor_adapter.config import load_config
from flows.parameters import Days
from tasks import maintenance
from tasks.reporting import JobsFailedError, run_name

FLOWS = ["collection", "processing", "pipeline", "maintenance"]
"""The flows whose artifacts are deleted; those of other flows on the same server stay."""


@flow(name="maintenance", flow_run_name=run_name)
def maintenance_flow(keep_days: Days = 30, keep_artifacts_days: Days = 90, config: str | None = None) -> None:
    """Clean up the store, the spool, the lake and old artifacts, and end task runs that outlived their flow run.

    Args:
        keep_days: Days for which finished jobs, unsent states and temporary files are kept.
        keep_artifacts_days: Days for which the artifacts of ended flow runs are kept. The runs themselves stay.
        config: The path of the configuration file, on the machine that runs the flow. Empty: the file that
            EXECUTOR_ADAPTER_CONFIG names, or config.yaml in the flow's working directory.

    Raises:
        ConfigurationError: the configuration is wrong; nothing was started.
        JobsFailedError: a part failed; the others were done.
    """
    settings = load_config(config)
    logger = get_run_logger()
    with JobExecutor(settings.executor.max_workers, config=settings):
        parts = [
            maintenance.clean_store.submit(settings.store.url, keep_days),
            maintenance.clean_spool_files.submit(keep_days),
            maintenance.end_lost_task_runs.submit(),
            maintenance.delete_artifacts.submit(FLOWS, keep_artifacts_days),
            maintenance.clean_lake.submit(settings.lake, keep_days),
        ]
        for part in parts:
            part.wait()
    failed = [str(part.state.message) for part in parts if not part.state.is_completed()]
    for part in parts:
        if part.state.is_completed():
            logger.info("%s", part.result())
    if failed:
        raise JobsFailedError(f"{len(failed)} of {len(parts)} parts failed: {'; '.join(failed)}")


if __name__ == "__main__":
    maintenance_flow()
