"""The records of a job: its attempts, its last progress and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, cast

from typing_extensions import TypeVar

from executor_adapter.job.html import html_of_results
from executor_adapter.job.status import JobStatus

R_co = TypeVar("R_co", covariant=True, default=Any)


class Attempt(NamedTuple):
    """Describes one finished attempt of a job. Times are in seconds, sizes in bytes."""

    number: int
    """The number of the attempt, from 1."""
    pool: str
    """The pool it ran in: "coroutine", "thread", "process", "ssh", "dask" or "ray"."""
    pid: int | None
    """The worker process; None where it ran in this process."""
    queue_seconds: float
    """Seconds from when the job was queued, or its retry was due, until the function began."""
    run_seconds: float
    """Seconds from the function's start to its end."""
    kill_seconds: float | None = None
    """Seconds from the limit or the cancel until its whole process tree was dead; None if it ended by itself."""
    peak_rss: int | None = None
    """The largest resident memory of the worker process, or with a `memory_limit` of its whole tree; None where it is
    not measured."""
    exit_code: int | None = None
    """The exit code of a worker that died."""
    exit_signal: int | None = None
    """The signal that killed the worker."""
    error_code: str | None = None
    """Why it failed; None where the function returned."""
    error_message: str | None = None
    """The text of its error; None where the function returned."""
    node: str | None = None
    """The host that it ran on; None where that is this one."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress that a running function last reported."""

    done: float
    """The amount that is done."""
    total: float | None = None
    """The amount to do in total; None if it is unknown."""
    message: str = ""
    """A short text for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult(Generic[R_co]):
    """Describes how a job ended. `JobExecutor.map` and `run_jobs` return one for each job.

    A `JobResult[int]` is that of a function that returns an int: `unwrap` gives the int, `value` an int or None.
    """

    job_id: str
    """The id of the job."""
    status: JobStatus
    """COMPLETED, FAILED or CANCELLED."""
    value: R_co | None = None
    """The value that the function returned; None where the job did not complete."""
    error: BaseException | None = None
    """The exception of the last attempt; None where the job completed."""
    error_code: str | None = None
    """The error code of the last attempt; None where the job completed."""
    attempts: int = 0
    """The number of attempts that were made."""
    duration: float | None = None
    """Seconds from the first start to the end; None where it never started."""

    def unwrap(self) -> R_co:
        """Return the value, or raise the error if there is one."""
        if self.error is not None:
            raise self.error
        return cast(R_co, self.value)  # A value of None is one of R's.

    def _repr_html_(self) -> str:
        return html_of_results([self])


class JobResults(list[JobResult]):
    """The results of many jobs: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return html_of_results(self)
