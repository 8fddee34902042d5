"""The two changing halves of a job: what has become of it, and what the supervisor keeps of it while it is live."""

from __future__ import annotations

import functools
import time
from typing import Any

from executor_adapter.job.results import AttemptFields, Progress
from executor_adapter.job.status import JobStatus

_BOOT_TIME = getattr(time, "CLOCK_BOOTTIME", None)

running_clock = time.monotonic if _BOOT_TIME is None else functools.partial(time.clock_gettime, _BOOT_TIME)
"""Returns seconds on a clock that nobody sets; on Linux it counts while the machine is suspended."""


class JobState:
    """Holds the state of a job: its status, attempts, times and error. Times are seconds since the epoch.

    Everyone may read it; `Job.advance`, `Job.record_attempt` and `Job.report_progress` alone write it, on the
    supervisor's thread. A store restores it whole, by `Job.restored`.
    """

    __slots__ = (
        "attempt",
        "attempts",
        "began",
        "completed_at",
        "crashes",
        "created_at",
        "error_code",
        "error_message",
        "progress",
        "records_processed",
        "retry_at",
        "started_at",
        "status",
    )

    def __init__(
        self,
        status: JobStatus = JobStatus.PENDING,
        attempt: int = 0,
        attempts: tuple[AttemptFields, ...] | None = None,
        crashes: int = 0,
        created_at: float | None = None,
        started_at: float | None = None,
        completed_at: float | None = None,
        retry_at: float | None = None,
        records_processed: int | None = None,
        progress: Progress | None = None,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> None:
        self.status = status
        self.attempt = attempt
        """The number of the attempt that runs or ran last, from 1; 0 before the first."""
        self.attempts = attempts
        """The fields of each finished attempt, in order."""
        self.began: float | None = None
        """When the first attempt began, on the `running_clock`; None where that was in another process."""
        self.crashes = crashes
        """The number of attempts that ended as WORKER_CRASHED or MEMORY_LIMIT."""
        self.created_at = time.time() if created_at is None else created_at
        self.started_at = started_at
        self.completed_at = completed_at
        self.retry_at = retry_at
        self.records_processed = records_processed
        self.progress = progress
        self.error_code = error_code
        self.error_message = error_message


class LiveState:
    """Holds what the supervisor needs of a live job. Only the supervisor writes it."""

    __slots__ = (
        "alone",
        "assignment",
        "checkpoint",
        "driver",
        "future",
        "is_plain",
        "memory_limit",
        "payload",
        "place",
        "pool",
        "queued_at",
        "resources",
        "scope",
        "timers",
    )

    def __init__(self) -> None:
        self.alone = False
        """The next attempt runs while no other attempt of the executor does."""
        self.assignment: Any = None
        """The `pools.base.Assignment` that a pool has been given."""
        self.checkpoint: bytes | None = None
        self.driver: Any = None
        """The `supervision.driver.JobDriver`, where retries are decided outside the supervisor."""
        self.future: Any = None
        """The `supervision.futures.JobFuture`."""
        self.is_plain = False
        """Whether freeing what the job holds runs nobody's code."""
        self.memory_limit: int | None = None
        """Bytes, of the next attempt: a retry rule may have raised it."""
        self.payload: Any = None
        """The function and its arguments, as the pool prepared them."""
        self.place = False
        """It takes one of the `max_pending` places."""
        self.pool = ""
        self.queued_at = 0.0
        """Monotonic seconds."""
        self.resources: dict[str, int] | None = None
        """What each attempt takes of the executor's capacity, in `job.resources.UNITS`."""
        self.scope: Any = None
        """The `supervision.messages.JobScope` around each attempt."""
        self.timers: dict[str, Any] | None = None
