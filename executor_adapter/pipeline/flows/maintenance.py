"""The job tasks of maintenance. Each removes or ends what is left over from other runs; none touches what is in use."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from executor_adapter.exceptions import JobError
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.upkeep import clean_lake, keep_table
from executor_adapter.prefect import clean_outbox, job_task, sweep
from executor_adapter.store import open_store
from executor_adapter.worker import current_job

HOURS_PER_DAY = 24
PAGE_SIZE = 200
"""Artifacts in one answer; the most that a Prefect server gives."""


class NotRecordedError(JobError):
    """Raised when the server has not recorded the ends of all lost task runs; they are ended again later."""


@job_task(pool="thread", job_type="maintenance", name="clean store", cache_policy=NO_CACHE, persist_result=False)
def clean_store(url: str | None, keep_days: int) -> str:
    """Delete jobs that finished long ago; unfinished and quarantined ones stay."""
    if url is None or url.startswith("memory:"):
        return "no store to clean"
    store = open_store(url)
    try:
        return f"{store.cleanup(keep_days * HOURS_PER_DAY)} finished jobs deleted from the store"
    finally:
        store.close()


@job_task(pool="thread", job_type="maintenance", name="clean outbox", cache_policy=NO_CACHE, persist_result=False)
def clean_the_outbox(keep_days: int) -> str:
    """Send the states that lie in the outbox of this machine, and remove those that are too old."""
    done = clean_outbox(max_age_days=keep_days)
    return f"{done.sent} states sent, {done.removed} removed, {done.left} left"


@job_task(pool="thread", job_type="maintenance", name="end lost task runs", cache_policy=NO_CACHE, persist_result=False)
def end_lost_task_runs() -> str:
    """End the task runs that are unfinished although their flow run has ended.

    Raises:
        NotRecordedError: the server has not recorded all of it.
    """
    swept = list(sweep())
    if not all(each.is_recorded for each in swept):
        raise NotRecordedError("the server has not recorded the ends of all lost task runs")
    return f"{sum(each.task_runs for each in swept)} task runs of {len(swept)} flow runs ended"


@job_task(pool="thread", job_type="maintenance", name="delete artifacts", cache_policy=NO_CACHE, persist_result=False)
def delete_artifacts(flow_names: list[str], keep_days: int) -> str:
    """Delete the artifacts of runs of these flows that ended long ago; the runs themselves stay."""
    before = datetime.now(UTC) - timedelta(days=keep_days)
    deleted = 0
    with get_client(sync_client=True) as client:
        while page := _artifacts(client, flow_names, before):
            for artifact_id in page:
                _delete(client, artifact_id)
            deleted += len(page)
            current_job().progress(deleted, message="artifacts deleted")
    return f"{deleted} artifacts deleted"


def _artifacts(client: SyncPrefectClient, flow_names: list[str], before: datetime) -> list[UUID]:
    """Return the ids of the next artifacts to delete. The client's own method cannot select by flow."""
    body = {
        "flows": {"name": {"any_": flow_names}},
        "flow_runs": {"end_time": {"before_": before.isoformat()}},
        "limit": PAGE_SIZE,
    }
    return [UUID(artifact["id"]) for artifact in client.request("POST", "/artifacts/filter", json=body).json()]


def _delete(client: SyncPrefectClient, artifact_id: UUID) -> None:
    with contextlib.suppress(ObjectNotFound):  # Somebody else has deleted it.
        client.delete_artifact(artifact_id)


@job_task(pool="thread", job_type="maintenance", name="clean lake", cache_policy=NO_CACHE, persist_result=False)
def clean_lake_files(root: Path, keep_days: int) -> str:
    """Remove what writers that died have left, and landings that newer ones replaced; tables stay."""
    files, landings = clean_lake(root, keep_days * HOURS_PER_DAY * 3600.0)
    return f"{files} unfinished files and {landings} old landings removed from the lake"


@job_task(
    pool="thread",
    job_type="maintenance",
    name="keep table",
    task_run_name="keep {table}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def keep(table: ConfiguredTable) -> str:
    """Remove the table's windows that are older than its `keep_days`, and compact those that are over."""
    removed, compacted = keep_table(table)
    return f"{table}: {removed} old windows removed, {compacted} files compacted into"
