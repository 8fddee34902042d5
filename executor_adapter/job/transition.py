"""What can be seen of a job from outside: a change of its state, and a time limit that is near."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from executor_adapter.error_facts import ErrorFacts
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
    error: ErrorFacts | None = None
    """What is known of the error, where an attempt failed: its code, class, text and traceback. The exception itself is
    for whoever asks the job's future."""


Observer = Callable[[Transition], None]
"""Called with each transition on the supervisor's thread, so it must be quick and must not block."""


class NearLimit(NamedTuple):
    """Says that a job has used most of a time limit, and ends at it unless it is done before."""

    job: Job
    """The job; its properties are live."""
    limit: str
    """The limit: "max_runtime" (of the attempt that runs) or "deadline"."""
    used: float
    """Seconds since the limit began to count."""
    of: float
    """The limit in seconds."""
    attempt: int
    """The number of the attempt whose max_runtime it is; 0 of a deadline, which is that of all attempts."""

    def __str__(self) -> str:
        left = f"{max(0.0, self.of - self.used):.3g} s are left"
        return f"job {self.job.job_id} has used {self.used:.3g} s of its {self.limit} of {self.of:.3g} s: {left}"
