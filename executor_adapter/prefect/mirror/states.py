"""Where a job stands, as Prefect shows it: one table.

PENDING                                       PENDING   Pending
RUNNING, first attempt                        RUNNING   Running
RETRYING                                      SCHEDULED AwaitingRetry (an engine skips it where there is no delay)
RUNNING, later attempt                        RUNNING   Retrying
COMPLETED                                     COMPLETED Completed
FAILED by time (TIMEOUT_ERROR, QUEUE_TIMEOUT, DEADLINE_EXCEEDED)
                                              FAILED    TimedOut
FAILED, WORKER_CRASHED                        CRASHED   Crashed
FAILED, MEMORY_LIMIT                          CRASHED   OutOfMemory
FAILED, any other code                        FAILED    Failed
CANCELLED                                     CANCELLED Cancelled
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from prefect.client.schemas.objects import State, StateDetails, StateType

from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions.display import text_of
from executor_adapter.job.status import ErrorCode, JobStatus


class StateKind(NamedTuple):
    """What the Prefect UI shows: the type decides the colour, the name is read."""

    type: StateType
    name: str


_KINDS = {
    JobStatus.PENDING: StateKind(StateType.PENDING, "Pending"),
    JobStatus.RUNNING: StateKind(StateType.RUNNING, "Running"),
    JobStatus.RETRYING: StateKind(StateType.SCHEDULED, "AwaitingRetry"),
    JobStatus.COMPLETED: StateKind(StateType.COMPLETED, "Completed"),
    JobStatus.FAILED: StateKind(StateType.FAILED, "Failed"),
    JobStatus.CANCELLED: StateKind(StateType.CANCELLED, "Cancelled"),
}
_LATER_ATTEMPT = StateKind(StateType.RUNNING, "Retrying")
_TIMED_OUT = StateKind(StateType.FAILED, "TimedOut")
_FAILED_BY: dict[str, StateKind] = {
    ErrorCode.TIMEOUT_ERROR: _TIMED_OUT,
    ErrorCode.QUEUE_TIMEOUT: _TIMED_OUT,
    ErrorCode.DEADLINE_EXCEEDED: _TIMED_OUT,
    ErrorCode.WORKER_CRASHED: StateKind(StateType.CRASHED, "Crashed"),
    ErrorCode.MEMORY_LIMIT: StateKind(StateType.CRASHED, "OutOfMemory"),
}


def state_kind(status: JobStatus, *, attempt: int = 1, error_code: str | None = None) -> StateKind:
    """The Prefect state of a job in `status`; `attempt` counts from 1, `error_code` is that of a FAILED job."""
    if status is JobStatus.RUNNING and attempt > 1:
        return _LATER_ATTEMPT
    if status is JobStatus.FAILED and error_code is not None:
        return _FAILED_BY.get(error_code, _KINDS[status])
    return _KINDS[status]


def failure_status(error: BaseException) -> JobStatus:
    """FAILED, or CANCELLED where that is what `error` says."""
    return JobStatus.CANCELLED if error_code_of(error) == ErrorCode.CANCELLED else JobStatus.FAILED


def failure_kind(error: BaseException) -> StateKind:
    """The final state of a job that ended with `error`."""
    return state_kind(failure_status(error), error_code=error_code_of(error))


def failure_message(error: BaseException) -> str:
    """`CODE: message`, as a failed state shows it."""
    return f"{error_code_of(error)}: {text_of(error) or type(error).__name__}"


def awaiting_retry_message(error: BaseException, *, attempt: int, attempts: int) -> str:
    """What such a state says: which attempt failed, and why."""
    return f"attempt {attempt} of {attempts}: {failure_message(error)}"


def awaiting_retry(error: BaseException, *, attempt: int, attempts: int, scheduled_time: datetime) -> State[Any]:
    """The state of a job whose `attempt` of at most `attempts` ended with `error`, until the next may start."""
    return State(
        **state_kind(JobStatus.RETRYING)._asdict(),
        message=awaiting_retry_message(error, attempt=attempt, attempts=attempts),
        state_details=StateDetails(scheduled_time=scheduled_time),
    )


def retrying(untold: State[Any] | None = None) -> State[Any]:
    """The state of a job whose second or later attempt begins; its message is that of `untold`, the state before."""
    return State(**state_kind(JobStatus.RUNNING, attempt=2)._asdict(), message=untold.message if untold else None)
