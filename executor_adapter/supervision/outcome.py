"""The errors that jobs end with, and the records of finished attempts. Supervisor thread only."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from executor_adapter.error_codes import error_code_of
from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError, SoftTimeoutError
from executor_adapter.exceptions.display import message_of
from executor_adapter.job import Job, JobStatus
from executor_adapter.pools import Assignment
from executor_adapter.supervision.stop_reason import StopReason
from executor_adapter.worker import FunctionPosition


def record_attempt(assignment: Assignment, error: BaseException | None, now: float) -> None:
    """Record a finished attempt in its job; `now` counts as its end if the pool did not report one."""
    job, live = assignment.job, assignment.job.live
    ended_at = assignment.ended_at or now
    started_at = assignment.started_at or ended_at
    assignment.run_time.learn(ended_at - started_at)
    asked_at = assignment.stop_asked_at
    code, message = (None, None) if error is None else code_and_message(error)
    record = (  # In the order of Attempt's fields.
        assignment.number,
        live.pool,
        assignment.pid,
        started_at - live.queued_at,
        ended_at - started_at,
        None if asked_at is None else ended_at - asked_at,
        assignment.peak_rss,
        assignment.exit_code,
        assignment.exit_signal,
        code,
        message,
        assignment.node,
    )
    job.record_attempt(record)


def stop_error(job: Job, reason: StopReason | None) -> JobTimeoutError | JobCancelledError:
    """Return the error of a job that was ended for `reason`."""
    why_cancelled = None if job.live.scope is None else job.live.scope.why_cancelled()
    match reason:
        case StopReason.QUEUE_TIMEOUT:
            message = f"not started within queue_timeout={job.queue_timeout} s: raise it, or max_workers"
            return JobTimeoutError(message, error_code="QUEUE_TIMEOUT")
        case StopReason.LIMIT:
            return JobTimeoutError(f"ran longer than max_runtime={job.max_runtime} s")
        case StopReason.STALL:
            return JobTimeoutError(f"no progress within stall_timeout={job.stall_timeout} s")
        case StopReason.DEADLINE:
            message = f"not finished within deadline={job.deadline} s of its submission"
            return JobTimeoutError(message, error_code="DEADLINE_EXCEEDED", ends=job.job_id)
        case StopReason.SHUTDOWN:
            message = why_cancelled or f"job {job.job_id} was cancelled: its executor was shut down"
            return JobCancelledError(message, shutdown=True, ends=job.job_id)
        case StopReason.CANCEL | None:
            return JobCancelledError(why_cancelled or f"job {job.job_id} was cancelled", ends=job.job_id)


def show_position(error: JobTimeoutError | JobCancelledError, assignment: Assignment) -> None:
    """Let the error of a timeout show where the function was, as its cause."""
    if assignment.position and isinstance(error, JobTimeoutError):
        error.__cause__ = FunctionPosition(assignment.position)


def is_end_of(job: Job, error: BaseException) -> bool:
    """Return whether `error` ends this job, whatever its policy, and not only its attempt."""
    return _ended_by(error) == job.job_id


def failed_as(job: Job, error: BaseException) -> JobStatus:
    """Return the final status of a job that failed with `error`: FAILED if the error is another job's cancellation."""
    cancelled = is_a(error, JobCancelledError) and _ended_by(error) in (None, job.job_id)
    return JobStatus.CANCELLED if cancelled else JobStatus.FAILED


def _ended_by(error: BaseException) -> str | None:
    """Return the id of the job that `stop_error` made the error for, if it did."""
    if type(error) is JobCancelledError or type(error) is JobTimeoutError:  # Not subclasses, whose own code may fail.
        return error.context.get("ends")
    return None


def soft_timeout_error(job: Job, cause: SoftTimeoutError) -> JobTimeoutError:
    """Return the error of an attempt that let SoftTimeoutError pass."""
    error = JobTimeoutError(f"ran longer than soft_timeout={job.soft_timeout} s")
    error.__cause__ = cause
    return error


def code_and_message(error: BaseException) -> tuple[str, str]:
    """Return the error code and the text that a job shows for `error`."""
    return error_code_of(error), message_of(error)


def records_in(value: dict[Any, Any]) -> int | None:
    """Return the number of collected or processed records that a function's result states."""
    for key in ("records_collected", "records_processed"):
        count: Any = value.get(key)
        # NumPy's integers are not ints. No other class is asked whether it is a number: that would run its code here.
        if type(count) is int or (type(count).__module__ == "numpy" and issubclass(type(count), Integral)):
            return int(count)
    return None
