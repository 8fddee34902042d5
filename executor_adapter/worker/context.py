"""What a running function may ask of its job, and say of itself.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import contextvars
import logging
import pickle
import time
from collections.abc import Callable
from typing import Any

_current: contextvars.ContextVar[JobContext | Callable[[], JobContext] | None] = contextvars.ContextVar(
    "executor_adapter_job", default=None
)


class JobContext:
    """The job that the calling function is an attempt of. Seconds are floats, on the monotonic clock."""

    __slots__ = ("_cancelled", "_checkpoint", "_emit", "attempt", "ends_at", "job_id", "metadata", "tool_name")

    def __init__(
        self,
        job_id: str,
        attempt: int,
        *,
        emit: Callable[[str, Any], None],
        ends_at: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        checkpoint: bytes | None = None,
        tool_name: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        """The number of this attempt, from 1."""
        self.tool_name = tool_name
        self.metadata = metadata or {}
        self.ends_at = ends_at
        self._emit = emit
        self._cancelled = cancelled
        self._checkpoint = checkpoint

    @property
    def remaining(self) -> float | None:
        """Seconds until this attempt is ended by its max_runtime; None without a limit."""
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the attempt has been asked to end: a function that looks can end cleanly within its grace."""
        return self._cancelled is not None and self._cancelled()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `job_id` and `attempt`, and reach the job's log from any pool."""
        extra = {"job_id": self.job_id, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger("executor_adapter.job"), extra)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the function is: shown live, and counted by `stall_timeout` as a sign of life."""
        self._emit("progress", (done, total, message))

    def checkpoint(self, value: Any) -> None:
        """Remember a picklable `value`: the next attempt finds the last one as `checkpoint_value`."""
        self._checkpoint = pickle.dumps(value, protocol=5)
        self._emit("checkpoint", self._checkpoint)

    @property
    def checkpoint_value(self) -> Any:
        """What this job last gave to `checkpoint`, in this or an earlier attempt; None where it never did."""
        return None if self._checkpoint is None else pickle.loads(self._checkpoint)

    def send(self, kind: str, content: Any) -> None:
        """Tell the parent's observers of an event of a kind of the caller's own; `content` must be picklable."""
        self._emit("event", (kind, content))


def current_job() -> JobContext:
    """The job that the calling function is an attempt of.

    Raises:
        RuntimeError: it is called outside a job.
    """
    context = _current.get()
    if context is None:
        raise RuntimeError("current_job() was called outside a job: run the function by a JobExecutor")
    if not isinstance(context, JobContext):
        context = context()
        _current.set(context)
    return context


def running_job() -> JobContext | None:
    """As `current_job`; None outside a job."""
    return None if _current.get() is None else current_job()


Entered = contextvars.Token[JobContext | Callable[[], JobContext] | None]


def enter_job(context: JobContext | Callable[[], JobContext]) -> Entered:
    """Make `context` what `current_job` gives, or what makes it when first asked for; pools call it around a function.

    Most functions never ask, and making one takes as long as all else around a short function.
    """
    return _current.set(context)


def leave_job(token: Entered) -> None:
    _current.reset(token)
