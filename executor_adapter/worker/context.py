"""The context of a running function: what it can read of its job, and how it reports to it.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import contextvars
import logging
import pickle
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from executor_adapter.worker import values

_current: contextvars.ContextVar[JobContext | Callable[[], JobContext] | None] = contextvars.ContextVar(
    "executor_adapter_job", default=None
)


class BoundCall(NamedTuple):
    """A function and the arguments that an attempt calls it with, for the scope that is entered around the call."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class JobContext:
    """Describes the job whose attempt is running, and reports to it. Seconds are floats, on the monotonic clock."""

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
        """The number of this attempt, counted from 1."""
        self.tool_name = tool_name
        self.metadata = metadata or {}
        self.ends_at = ends_at
        self._emit = emit
        self._cancelled = cancelled
        self._checkpoint = checkpoint

    @property
    def remaining(self) -> float | None:
        """Seconds until max_runtime ends this attempt; None if there is no limit."""
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was asked to end. A function that checks this can clean up within its grace period."""
        return self._cancelled is not None and self._cancelled()

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry `job_id` and `attempt`, and reach the job's log from every pool."""
        extra = {"job_id": self.job_id, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger("executor_adapter.job"), extra)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Report progress. It is shown live, and restarts the clock of `stall_timeout`."""
        self._emit("progress", (done, total, message))

    def checkpoint(self, value: Any) -> None:
        """Store a picklable `value`: the next attempt reads the latest one as `checkpoint_value`."""
        self._checkpoint = values.dumps(value)
        self._emit("checkpoint", self._checkpoint)

    @property
    def checkpoint_value(self) -> Any:
        """The latest value given to `checkpoint`, in this or an earlier attempt; None if there is none."""
        return None if self._checkpoint is None else pickle.loads(self._checkpoint)

    def send(self, kind: str, content: Any) -> None:
        """Send an event of any `kind` to the host, where `content` arrives pickled.

        Raises:
            Exception: the content cannot be pickled, or its pickle cannot be loaded.
        """
        self._emit("event", (str.__str__(kind), values.checked_dumps(content)))


def current_job() -> JobContext:
    """Return the context of the job that the calling function runs for.

    Raises:
        RuntimeError: the caller does not run in a job.
    """
    context = _current.get()
    if context is None:
        raise RuntimeError(
            "current_job() was called outside a job: run the function with a JobExecutor, and give what it returns to "
            "threads that the function starts"
        )
    if not isinstance(context, JobContext):
        context = context()
        _current.set(context)
    return context


def running_job() -> JobContext | None:
    """Return what `current_job` returns, or None outside a job."""
    return None if _current.get() is None else current_job()


JobToken = contextvars.Token[JobContext | Callable[[], JobContext] | None]


def enter_job(context: JobContext | Callable[[], JobContext]) -> JobToken:
    """Make `current_job` return `context` until `leave_job(token)`; pools call this around a function.

    A callable is called when the context is first used: most functions never use it, and making one takes as long as
    everything else around a short function.
    """
    return _current.set(context)


def leave_job(token: JobToken) -> None:
    """Undo `enter_job`."""
    _current.reset(token)
