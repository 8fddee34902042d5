"""The job tasks of maintenance. Each removes or ends what is left over from other runs; none touches what is in use."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from prefect.settings import get_current_settings

from executor_adapter.exceptions import JobError
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.upkeep import expire_windows, remove_leftovers
from executor_adapter.prefect import clean_outbox, job_task, sweep
from executor_adapter.store import open_store

HOURS_PER_DAY, SECONDS_PER_DAY = 24, 86_400.0
UPKEEP: Any = {"pool": "thread", "job_type": "maintenance", "persist_result": False}


@job_task(name="clean store", **UPKEEP)
def clean_store(url: str | None, keep_days: int) -> str:
    """Delete jobs that finished long ago; unfinished and quarantined ones stay."""
    if url is None or url.startswith("memory:"):
        return "no store to clean"
    with contextlib.closing(open_store(url)) as store:
        return f"{store.cleanup(keep_days * HOURS_PER_DAY)} finished jobs deleted from the store"


@job_task(name="clean outbox", **UPKEEP)
def clean_the_outbox(keep_days: int) -> str:
    """Send the states that lie in the outbox of this machine, and remove those that are too old."""
    done = clean_outbox(max_age_days=keep_days)
    return f"{done.sent} states sent, {done.removed} removed, {done.left} left"


@job_task(name="end lost task runs", **UPKEEP)
def end_lost_task_runs() -> str:
    """End the task runs that are unfinished although their flow run has ended.

    Raises:
        JobError: the server has not recorded all of it; the rest is ended later.
    """
    swept = list(sweep())
    if not all(each.is_recorded for each in swept):
        raise JobError("the server has not recorded the ends of all lost task runs")
    return f"{sum(each.task_runs for each in swept)} task runs of {len(swept)} flow runs ended"


@job_task(name="clean results", **UPKEEP)
def clean_results(keep_days: int) -> str:
    """Remove the results that Prefect keeps, unless a flow names another folder, and nobody uses for that long."""
    folder = Path(str(get_current_settings().results.local_storage_path))
    before, removed = time.time() - keep_days * SECONDS_PER_DAY, 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Somebody else has removed it.
            status = file.stat()
            if file.is_file() and max(status.st_mtime, status.st_atime) < before:
                file.unlink()
                removed += 1
    return f"{removed} results removed from {folder}"


@job_task(name="clean lake", **UPKEEP)
def clean_lake_files(root: Path, keep_days: int) -> str:
    """Remove what writers that died have left, and landings that newer ones replaced; tables stay."""
    removed = remove_leftovers(root, older_than=keep_days * SECONDS_PER_DAY)
    return f"{removed} unfinished files and old landings removed from the lake"


@job_task(name="keep table", task_run_name="keep {table}", **UPKEEP)
def keep(table: ConfiguredTable) -> str:
    """Remove the table's windows that are older than its `keep_days`."""
    return f"{table}: {expire_windows(table)} old windows removed"
