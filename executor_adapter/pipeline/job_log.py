"""Log lines and progress of the current job. Outside a job these functions do nothing, so plain calls work too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from executor_adapter.config import redacted
from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.worker.context import running_job


def log(message: str, *values: object) -> None:
    """Write a line to the job's log, without credentials; `values` fill the message as in the logging module."""
    if (job := running_job()) is not None:
        job.logger.info("%s", redacted(message % values))


def progress(done: float, total: float | None, unit: str) -> None:
    """Report how much is done, counted in `unit`: rows, pages, bytes."""
    if (job := running_job()) is not None:
        job.progress(done, total, unit)


def do_each(things: Sequence[Any], work: Callable[[Any], dict[str, Any]], total: dict[str, Any]) -> dict[str, Any]:
    """Return what `work` gives for each thing, added to `total`; its status stays where these are not all the same.

    `failed` are those of several things for which it failed: each of them needs a job of its own. There its error stops
    no other, is retried by the policy, and is a job's. The error for a single thing is raised, and so is the job's soft
    timeout.
    """
    if len(things) == 1:
        return work(things[0]) | {"failed": []}
    total, statuses = total | {"failed": []}, set[str]()
    for number, thing in enumerate(things, 1):
        try:
            done = work(thing)
            statuses.add(done.pop("status"))
        except SoftTimeoutError:
            raise
        except Exception as error:  # A user's step or source may raise anything.
            log("%d of %d failed, and gets a job of its own: %s", number, len(things), error)
            done = {"failed": [thing]}
        total |= {name: total[name] + more for name, more in done.items()}
        progress(number, len(things), "windows")
    return total | ({"status": statuses.pop()} if len(statuses) == 1 else {})
