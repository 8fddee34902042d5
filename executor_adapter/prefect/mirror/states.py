"""The Prefect state that shows a job's status, in one table.

PENDING                                       PENDING   Pending
RUNNING, first attempt                        RUNNING   Running
RETRYING                                      SCHEDULED AwaitingRetry (an engine skips it where there is no delay)
RUNNING, later attempt                        RUNNING   Retrying
COMPLETED                                     COMPLETED Completed
FAILED by time (TIMEOUT_ERROR, QUEUE_TIMEOUT, DEADLINE_EXCEEDED)
                                              FAILED    TimedOut
FAILED, WORKER_CRASHED, WORKER_UNAVAILABLE or NODE_LOST  CRASHED   Crashed
FAILED, MEMORY_LIMIT                          CRASHED   OutOfMemory
FAILED, any other code                        FAILED    Failed
CANCELLED                                     CANCELLED Cancelled
"""

from __future__ import annotations

from typing import NamedTuple

from prefect.client.schemas.objects import StateType

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import JobError
from executor_adapter.job import ErrorCode, JobStatus


class StateKind(NamedTuple):
    """A state as the Prefect UI shows it: the type decides its colour, the name is its text."""

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
_CRASHED = StateKind(StateType.CRASHED, "Crashed")
_FAILED_BY: dict[str, StateKind] = {
    ErrorCode.TIMEOUT_ERROR: _TIMED_OUT,
    ErrorCode.QUEUE_TIMEOUT: _TIMED_OUT,
    ErrorCode.DEADLINE_EXCEEDED: _TIMED_OUT,
    ErrorCode.WORKER_CRASHED: _CRASHED,
    ErrorCode.WORKER_UNAVAILABLE: _CRASHED,
    ErrorCode.NODE_LOST: _CRASHED,
    ErrorCode.MEMORY_LIMIT: StateKind(StateType.CRASHED, "OutOfMemory"),
}


def state_kind(status: JobStatus, *, attempt: int = 1, error_code: str | None = None) -> StateKind:
    """Return the Prefect state of a job in `status`.

    `attempt` counts from 1; `error_code` matters for FAILED jobs only.
    """
    if status is JobStatus.RUNNING and attempt > 1:
        return _LATER_ATTEMPT
    if status is JobStatus.FAILED and error_code is not None:
        return _FAILED_BY.get(error_code, _KINDS[status])
    return _KINDS[status]


def failure_kind(error: ErrorFacts) -> StateKind:
    """Return the final state of a job that ended with `error`."""
    status = JobStatus.CANCELLED if error.code == ErrorCode.CANCELLED else JobStatus.FAILED
    return state_kind(status, error_code=error.code)


def failure_message(error: ErrorFacts) -> str:
    """Return the message of a failed state: Prefect's own words, or `CODE: ...` where the code says more than those."""
    described = _described(error)
    return f"Task run encountered an exception {described}" if _is_unclassified(error) else described


def _described(error: ErrorFacts) -> str:
    """Return the class and text of an exception, as Prefect shows them, after its code if it has one of its own."""
    if not _is_unclassified(error):
        return f"{error.code}: {error.text}"
    name = error.kinds[0].rpartition(".")[2]
    return f"{name}: " if error.text == name else error.text


def _is_unclassified(error: ErrorFacts) -> bool:
    """Return whether it is an exception of the function's of which the code says nothing."""
    return error.code == ErrorCode.EXECUTION_ERROR and not error.is_a(JobError)


def awaiting_retry_message(error: ErrorFacts, *, attempt: int, attempts: int) -> str:
    """Return the message of an AwaitingRetry state: which attempt failed, and why."""
    return f"attempt {attempt} of {attempts}: {_described(error)}"
