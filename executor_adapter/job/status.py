"""The states of a job, the legal transitions between them, and the codes of errors.

    PENDING ──► RUNNING ──► COMPLETED
       ▲  │      │ │ │ └──► FAILED
       │  │      │ │ └────► CANCELLED
       └──┼──────┘ ▼
          │     RETRYING ──► RUNNING, FAILED, CANCELLED, COMPLETED
          └──► FAILED, CANCELLED, COMPLETED (a cached result)

RUNNING falls back to PENDING when its worker died before the function began: no attempt is counted.
"""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The state that a job is in."""

    PENDING = "pending"
    """Queued, from the moment it is submitted."""
    RUNNING = "running"
    """An attempt is running."""
    RETRYING = "retrying"
    """An attempt failed, and the next one is scheduled."""
    COMPLETED = "completed"
    """The function returned."""
    FAILED = "failed"
    """The last attempt failed, or the error is never retried."""
    CANCELLED = "cancelled"
    """Cancelled, and nothing of it runs any more."""

    @property
    def is_terminal(self) -> bool:
        """Whether the job has finished."""
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})

LEGAL_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    **dict.fromkeys(TERMINAL, frozenset()),
    JobStatus.PENDING: frozenset({JobStatus.RUNNING}) | TERMINAL,
    JobStatus.RUNNING: frozenset({JobStatus.RETRYING, JobStatus.PENDING}) | TERMINAL,
    JobStatus.RETRYING: frozenset({JobStatus.RUNNING}) | TERMINAL,
}


class ErrorCode(StrEnum):
    """Why an attempt failed. A plain string is an error code too, so users can define their own."""

    TIMEOUT_ERROR = "TIMEOUT_ERROR"
    """The attempt exceeded max_runtime or soft_timeout, or the function raised a TimeoutError."""
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    """The job did not start within queue_timeout."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """The job did not finish within its deadline, all attempts included."""
    NETWORK_ERROR = "NETWORK_ERROR"
    """The remote side could not be reached."""
    API_ERROR = "API_ERROR"
    """The remote side answered with an error that may pass (HTTP 5xx)."""
    REQUEST_ERROR = "REQUEST_ERROR"
    """The remote side rejected the request (HTTP 4xx) and would reject it again. Not retried."""
    RATE_LIMITED = "RATE_LIMITED"
    """The remote side asked for fewer requests (HTTP 429)."""
    DATA_ERROR = "DATA_ERROR"
    """The data is invalid, and a retry would read the same data. Not retried."""
    CONFIGURATION_ERROR = "CONFIGURATION_ERROR"
    """The configuration is wrong. Not retried."""
    SERIALIZATION_ERROR = "SERIALIZATION_ERROR"
    """The function, an argument or the result cannot be pickled. Not retried."""
    MISSING_MODULE = "MISSING_MODULE"
    """A module that the function or an argument needs cannot be imported where it was to run. Not retried there."""
    WORKER_CRASHED = "WORKER_CRASHED"
    """The worker process died while it ran the job."""
    WORKER_UNAVAILABLE = "WORKER_UNAVAILABLE"
    """No worker could be started: its set-up hangs, or the system refuses a process, a thread or a descriptor."""
    NODE_LOST = "NODE_LOST"
    """The node that ran the attempt was lost: cut off, stopped or switched off, or the guardian of its workers died.

    It counts as no crash of the job.
    """
    MEMORY_LIMIT = "MEMORY_LIMIT"
    """The process tree of the attempt exceeded memory_limit, or memory ran out and it held the most."""
    CANCELLED = "CANCELLED"
    """The job was cancelled. Not retried."""
    COLLECTION_ERROR = "COLLECTION_ERROR"
    """The function raised a DataCollectionException without an error code."""
    PROCESSING_ERROR = "PROCESSING_ERROR"
    """The function raised a DataProcessingException without an error code."""
    EXECUTION_ERROR = "EXECUTION_ERROR"
    """The function raised any other exception."""
