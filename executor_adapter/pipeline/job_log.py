"""Log lines and progress of the current job. Outside a job these functions do nothing, so plain calls work too."""

from __future__ import annotations

from executor_adapter.config import redacted
from executor_adapter.worker import running_job


def log(message: str, *values: object) -> None:
    """Write a line to the job's log, without credentials; `values` fill the message as in the logging module."""
    if (job := running_job()) is not None:
        job.logger.info("%s", redacted(message % values))


def progress(done: float, total: float | None, unit: str) -> None:
    """Report how much is done, counted in `unit`: rows, pages, bytes."""
    if (job := running_job()) is not None:
        job.progress(done, total, unit)
