"""A change of a job's state, and the functions that are notified of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from executor_adapter.job.status import JobStatus

if TYPE_CHECKING:
    from executor_adapter.job.model import Job


class Transition(NamedTuple):
    """Records that a job entered `status`. Observers receive each transition, in order."""

    job: Job
    """The job; its properties are live."""
    previous: JobStatus | None
    """The state before; None where the job has just been submitted."""
    status: JobStatus
    """The state that the job entered."""
    at: float
    """Seconds since the epoch."""
    attempt: int
    """The number of the attempt that runs or ran last, from 1; 0 before the first."""
    error: BaseException | None = None
    """Why, where an attempt failed."""


Observer = Callable[[Transition], None]
"""Called with each transition on the supervisor's thread, so it must be quick and must not block."""
