"""Log lines and progress of the current job. Outside a job these functions do nothing, so plain calls work too."""

from __future__ import annotations

from executor_adapter import JobContext, current_job
from executor_adapter.config import redacted


def log(message: str, *values: object) -> None:
    """Write a line to the job's log, without credentials; `values` fill the message as in the logging module."""
    if (job := _current_job()) is not None:
        job.logger.info("%s", redacted(message % values))


def progress(done: float, total: float | None, unit: str) -> None:
    """Report how much is done, counted in `unit`: rows, objects."""
    if (job := _current_job()) is not None:
        job.progress(done, total, unit)


def _current_job() -> JobContext | None:
    try:
        return current_job()
    except RuntimeError:
        return None
