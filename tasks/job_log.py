"""What a function says while it works, to whoever runs it as a job; called by hand it says nothing."""

from __future__ import annotations

from executor_adapter.worker.context import JobContext, current_job


def log(message: str, *values: object) -> None:
    """A line in the job's log, with `values` filled in as logging does."""
    if (job := _job()) is not None:
        job.logger.info(message, *values)


def progress(done: float, total: float | None, of: str) -> None:
    """How far it is, in `of`: rows, objects."""
    if (job := _job()) is not None:
        job.progress(done, total, of)


def _job() -> JobContext | None:
    try:
        return current_job()
    except RuntimeError:
        return None
