"""The two changing halves of a job: what has become of it, and what the supervisor keeps of it while it is live."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from typing import Any

from executor_adapter.job.results import Attempt, Progress
from executor_adapter.job.status import JobStatus

_BOOT_TIME = getattr(time, "CLOCK_BOOTTIME", None)

running_clock = time.monotonic if _BOOT_TIME is None else functools.partial(time.clock_gettime, _BOOT_TIME)
"""Returns seconds on a clock that nobody sets; on Linux it counts while the machine is suspended."""

MAX_ATTEMPTS = 100
"""Attempts of a job that are kept: each write to a store holds them all, and a job may be retried for ever."""


@dataclass(slots=True, eq=False, repr=False)
class JobState:
    """Holds the state of a job: its status, attempts, times and error. Times are seconds since the epoch.

    Everyone may read it. The last methods of `Job`, from `advance` on, alone write it, on the supervisor's thread. A
    store restores it whole, by `Job.restored`.
    """

    status: JobStatus = JobStatus.PENDING
    attempt: int = 0
    """The number of the attempt that runs or ran last, from 1; 0 before the first."""
    attempts: tuple[Attempt, ...] = ()
    """The finished attempts, in order; of more than MAX_ATTEMPTS, the first one and the newest."""
    crashes: int = 0
    """The number of attempts that ended as WORKER_CRASHED or MEMORY_LIMIT."""
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    completed_at: float | None = None
    retry_at: float | None = None
    records_processed: int | None = None
    progress: Progress | None = None
    error_code: str | None = None
    error_message: str | None = None
    attempt_started_at: float | None = field(default=None, init=False)
    """When the attempt that runs or ran last began; None where that was in another process."""
    began: float | None = field(default=None, init=False)
    """When the first attempt began, on the `running_clock`; None where that was in another process."""


@dataclass(slots=True, eq=False, repr=False)
class LiveState:
    """Holds what the supervisor needs of a live job. Only the supervisor writes it."""

    alone: bool = False
    """The next attempt runs while no other attempt of the executor does."""
    assignment: Any = None
    """The `pools.base.Assignment` that a pool has been given."""
    checkpoint: bytes | None = None
    driver: Any = None
    """The `supervision.driver.JobDriver`, where retries are decided outside the supervisor."""
    future: Any = None
    """The `supervision.futures.JobFuture`."""
    is_plain: bool = False
    """Whether freeing what the job holds runs nobody's code."""
    memory_limit: int | None = None
    """Bytes, of the next attempt: a retry rule may have raised it."""
    payload: Any = None
    """The function and its arguments, as the pool prepared them."""
    place: bool = False
    """It takes one of the `max_pending` places."""
    pool: str = ""
    queued_at: float = 0.0
    """Monotonic seconds."""
    resources: dict[str, int] | None = None
    """What each attempt takes of the executor's capacity, in `job.resources.UNITS`."""
    scope: Any = None
    """The `supervision.messages.JobScope` around each attempt."""
    timers: dict[str, Any] | None = None
    wants_slot: bool = True
    """Whether a slot is of use to it, where it is queued: it has not ended, and is not being ended by its driver."""
