"""Where a job stands, as Prefect shows it: one table.

PENDING                                       PENDING   Pending
RUNNING, first attempt                        RUNNING   Running
RETRYING                                      SCHEDULED AwaitingRetry
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
from typing import Any, NamedTuple, assert_never

from prefect.client.schemas.objects import State, StateDetails, StateType

from executor_adapter.error_codes import error_code_of
from executor_adapter.job import ErrorCode, JobStatus


class StateKind(NamedTuple):
    """What the Prefect UI shows: the type decides the colour, the name is read."""

    type: StateType
    name: str


def state_kind(status: JobStatus, *, attempt: int = 1, error_code: str | None = None) -> StateKind:
    """The Prefect state of a job in `status`; `attempt` counts from 1, `error_code` is that of a FAILED job."""
    match status:
        case JobStatus.PENDING:
            return StateKind(StateType.PENDING, "Pending")
        case JobStatus.RUNNING:
            return StateKind(StateType.RUNNING, "Running" if attempt <= 1 else "Retrying")
        case JobStatus.RETRYING:
            return StateKind(StateType.SCHEDULED, "AwaitingRetry")
        case JobStatus.COMPLETED:
            return StateKind(StateType.COMPLETED, "Completed")
        case JobStatus.FAILED:
            return _failed_kind(error_code)
        case JobStatus.CANCELLED:
            return StateKind(StateType.CANCELLED, "Cancelled")
        case _:
            assert_never(status)


def _failed_kind(error_code: str | None) -> StateKind:
    match error_code:
        case ErrorCode.TIMEOUT_ERROR | ErrorCode.QUEUE_TIMEOUT | ErrorCode.DEADLINE_EXCEEDED:
            return StateKind(StateType.FAILED, "TimedOut")
        case ErrorCode.WORKER_CRASHED:
            return StateKind(StateType.CRASHED, "Crashed")
        case ErrorCode.MEMORY_LIMIT:
            return StateKind(StateType.CRASHED, "OutOfMemory")
        case _:
            return StateKind(StateType.FAILED, "Failed")


def failure_status(error: BaseException) -> JobStatus:
    """FAILED, or CANCELLED where that is what `error` says."""
    return JobStatus.CANCELLED if error_code_of(error) == ErrorCode.CANCELLED else JobStatus.FAILED


def failure_kind(error: BaseException) -> StateKind:
    """The final state of a job that ended with `error`."""
    return state_kind(failure_status(error), error_code=error_code_of(error))


def failure_message(error: BaseException) -> str:
    """`CODE: message`, as a failed state shows it."""
    return f"{error_code_of(error)}: {str(error) or type(error).__name__}"


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


def retrying() -> State[Any]:
    """The state of a job whose second or later attempt begins."""
    return State(**state_kind(JobStatus.RUNNING, attempt=2)._asdict())
