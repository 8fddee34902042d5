"""The table of job statuses and Prefect states, row by row."""

from __future__ import annotations

import asyncio

import pytest
from prefect.states import AwaitingRetry, Retrying, exception_to_failed_state

from executor_adapter.exceptions import (
    DataCollectionException,
    JobCancelledError,
    JobTimeoutError,
    MemoryLimitError,
    WorkerCrashedError,
)
from executor_adapter.job.status import ErrorCode, JobStatus
from executor_adapter.prefect.mirror.states import awaiting_retry_message, failure_kind, failure_message, state_kind
from executor_adapter.worker.facts import facts_of


@pytest.mark.parametrize(
    ("status", "attempt", "expected"),
    [
        (JobStatus.PENDING, 0, ("PENDING", "Pending")),
        (JobStatus.RUNNING, 1, ("RUNNING", "Running")),
        (JobStatus.RUNNING, 2, ("RUNNING", "Retrying")),
        (JobStatus.RETRYING, 1, ("SCHEDULED", "AwaitingRetry")),
        (JobStatus.COMPLETED, 3, ("COMPLETED", "Completed")),
        (JobStatus.CANCELLED, 1, ("CANCELLED", "Cancelled")),
    ],
)
def test_a_job_that_has_not_failed_has_its_state_by_status_and_attempt(
    status: JobStatus, attempt: int, expected: tuple[str, str]
) -> None:
    """An attempt after the first is Retrying instead of Running."""
    assert state_kind(status, attempt=attempt) == expected


@pytest.mark.parametrize("code", [*ErrorCode, "A_CODE_OF_THE_USERS_OWN", None])
def test_a_failed_job_has_its_state_by_error_code(code: str | None) -> None:
    """Timeouts, crashes and exceeded memory have states of their own; all other codes are Failed."""
    special = {
        "TIMEOUT_ERROR": ("FAILED", "TimedOut"),
        "QUEUE_TIMEOUT": ("FAILED", "TimedOut"),
        "DEADLINE_EXCEEDED": ("FAILED", "TimedOut"),
        "WORKER_CRASHED": ("CRASHED", "Crashed"),
        "WORKER_UNAVAILABLE": ("CRASHED", "Crashed"),
        "NODE_LOST": ("CRASHED", "Crashed"),
        "MEMORY_LIMIT": ("CRASHED", "OutOfMemory"),
    }
    assert state_kind(JobStatus.FAILED, error_code=code) == special.get(str(code), ("FAILED", "Failed"))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ConnectionError("refused"), "Failed"),
        (TimeoutError("slow"), "TimedOut"),
        (JobTimeoutError("late", error_code="QUEUE_TIMEOUT"), "TimedOut"),
        (WorkerCrashedError("gone", exit_signal=9), "Crashed"),
        (MemoryLimitError("too big"), "OutOfMemory"),
        (JobCancelledError("stopped"), "Cancelled"),
    ],
)
def test_an_exception_decides_the_final_state(error: Exception, name: str) -> None:
    """Exceptions without an error code get one by their class."""
    assert failure_kind(facts_of(error)).name == name


class OddError(Exception):
    """An exception of a user's own."""


class OddCollectionError(DataCollectionException):
    """An exception that a user has derived from one of ours."""


def test_a_failure_message_is_prefects_unless_the_code_says_more() -> None:
    """A failure message has the class and text as Prefect's has, and the code where that says more."""
    assert failure_message(facts_of(ConnectionError("refused"))) == "NETWORK_ERROR: ConnectionError: refused"
    assert failure_message(facts_of(ValueError("b"))) == "Task run encountered an exception ValueError: b"
    assert failure_message(facts_of(OddError("b"))) == "Task run encountered an exception OddError: b"
    for error in (ValueError("b"), OddError("b"), KeyError("b"), OddError()):
        stock = asyncio.run(exception_to_failed_state(error, message="Task run encountered an exception"))
        assert failure_message(facts_of(error)) == stock.message
    assert failure_message(facts_of(WorkerCrashedError("worker 3 died"))) == "WORKER_CRASHED: worker 3 died"
    assert (
        failure_message(facts_of(DataCollectionException("bad row", error_code="DATA_ERROR"))) == "DATA_ERROR: bad row"
    )
    assert failure_message(facts_of(OddCollectionError("bad row"))) == "COLLECTION_ERROR: OddCollectionError: bad row"


def test_the_message_of_awaiting_retry_has_the_failed_attempt() -> None:
    """It counts the attempts, and has the error of the one that failed."""
    message = awaiting_retry_message(facts_of(ConnectionError("refused")), attempt=1, attempts=4)
    assert message == "attempt 1 of 4: NETWORK_ERROR: ConnectionError: refused"


def test_the_states_of_retries_that_engines_enter_are_those_of_the_table() -> None:
    """An engine takes them from Prefect, and the mirror of an executor takes them from the table."""
    waiting, again = AwaitingRetry(), Retrying()
    assert (waiting.type, waiting.name) == state_kind(JobStatus.RETRYING)
    assert (again.type, again.name) == state_kind(JobStatus.RUNNING, attempt=2)
