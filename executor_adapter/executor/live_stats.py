"""The figures of an executor at this moment."""

from __future__ import annotations

import time

from executor_adapter.job import JobStatus
from executor_adapter.supervision import ExecutorStats, Supervisor, figures


def live_stats(supervisor: Supervisor, *, abandoned_attempts: int, window: float) -> ExecutorStats:
    """Return the supervisor's counts since it was made, and figures of jobs that ended in the last `window` seconds.

    `abandoned_attempts`: attempts that were given up on outside its pools, counted with its abandoned threads.
    """
    tracker = supervisor.tracker
    counts, now, pools = tracker.counts, supervisor.now(), supervisor.pools.stats()
    begun = [run.started_at for run in supervisor.running() if run.started_at is not None]
    guard = supervisor.dispatcher.memory_guard
    level = None if guard is None else guard.read()
    return ExecutorStats(
        jobs_pending=counts[JobStatus.PENDING],
        jobs_running=counts[JobStatus.RUNNING],
        jobs_retrying=counts[JobStatus.RETRYING],
        jobs_completed=counts[JobStatus.COMPLETED],
        jobs_failed=counts[JobStatus.FAILED],
        jobs_cancelled=counts[JobStatus.CANCELLED],
        retries=tracker.retries,
        workers_busy=pools["workers_busy"],
        abandoned_threads=pools["abandoned_threads"] + abandoned_attempts,
        quarantined=tuple(supervisor.intake.quarantined),
        longest_running_seconds=now - min(begun) if begun else None,
        jobs_near_limit=supervisor.near_limits.count(),
        waits_for_memory=guard is not None and guard.holds,
        waiting_for_resources=supervisor.dispatcher.resources.waiting,
        memory_limit_bytes=None if level is None else level.limit,
        memory_left_bytes=None if level is None else level.left,
        **figures(tracker.ended, now=time.time(), window=window),
    )
