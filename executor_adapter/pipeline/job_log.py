"""Log lines and progress of the current job. Outside a job these functions do nothing, so plain calls work too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from executor_adapter.config import redacted
from executor_adapter.error_codes import NEVER_RETRIED, error_code_of
from executor_adapter.exceptions import DataCollectionException, JobError
from executor_adapter.worker import running_job


def log(message: str, *values: object) -> None:
    """Write a line to the job's log, without credentials; `values` fill the message as in the logging module."""
    if (job := running_job()) is not None:
        job.logger.info("%s", redacted(message % values))


def progress(done: float, total: float | None, unit: str) -> None:
    """Report how much is done, counted in `unit`: rows, pages, bytes."""
    if (job := running_job()) is not None:
        job.progress(done, total, unit)


MAX_SAID = 5
"""Failures that the error of a job of several things names."""
T = TypeVar("T")


def do_each(things: Sequence[T], work: Callable[[T], Any]) -> list[Any]:
    """Return what `work` gives for each thing; one that fails stops no other.

    Raises:
        JobError: some failed; the code is one of those that may go well when they are tried again.
    """
    done, failed = [], []
    for number, thing in enumerate(things, 1):
        try:
            done.append(work(thing))
        except (JobError, OSError) as error:
            if len(things) == 1:
                raise
            failed.append(error)
        if len(things) > 1:
            progress(number, len(things), "windows")
    if failed:
        codes = [error_code_of(error) for error in failed]
        code = next((each for each in codes if each not in NEVER_RETRIED), codes[0])
        said = "; ".join(str(error) for error in failed[:MAX_SAID])
        raise DataCollectionException(f"{len(failed)} of {len(things)} windows failed: {said}", error_code=code)
    return done
