"""The progress bar of a scheduler."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from executor_adapter.executor import JobExecutor


def scheduler_bar(title: str, executor: JobExecutor) -> AbstractContextManager[Any]:
    """Return the bar of all jobs that the executor has got so far: how many are done, failed, running and waiting."""
    from executor_adapter.monitoring import ProgressBar, ProgressCounts  # It needs rich, which few programs load.

    def read() -> ProgressCounts:
        stats = executor.stats(window=0.0)
        failed = stats.jobs_failed + stats.jobs_cancelled
        done = stats.jobs_completed + failed
        waiting = stats.jobs_pending + stats.jobs_retrying
        note = f"{stats.jobs_running} running, {waiting} waiting" if stats.jobs_running or waiting else ""
        total = done + stats.jobs_running + waiting
        return ProgressCounts(done=done, failed=failed, total=total, note=note)

    return ProgressBar(title, read)
