"""What can go wrong, as one tree:

    JobError                            how a job ended without a value
    ├── JobTimeoutError                 also a TimeoutError: past max_runtime, queue_timeout or deadline
    ├── WorkerCrashedError              the worker's process died under the job
    │   ├── MemoryLimitError            ... because it exceeded memory_limit, or memory ran out
    │   ├── NodeLostError               ... because its node was lost: cut off, stopped or switched off
    │   └── WorkerUnavailableError      ... or no worker could be started for the job
    ├── JobCancelledError               also a concurrent.futures.CancelledError
    ├── JobSerializationError           a function, argument or result cannot be pickled
    ├── DataCollectionException         raised by collection functions, with the error code of their choice
    └── DataProcessingException         raised by processing functions in the same way
    InvalidJobError                     also a ValueError: refused at submit
    QueueFullError                      max_pending jobs are queued, and no place became free in time
    ExecutorClosedError                 also a RuntimeError: submitted after shutdown
    ConfigurationError                  also a ValueError: config.yaml or the environment is wrong
    SoftTimeoutError                    raised inside a function at its soft_timeout, so that it can clean up

Every worker imports this module, so it uses the standard library alone.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

__all__ = [
    "ConfigurationError",
    "DataCollectionException",
    "DataProcessingException",
    "ExecutorClosedError",
    "InvalidJobError",
    "JobCancelledError",
    "JobError",
    "JobSerializationError",
    "JobTimeoutError",
    "MemoryLimitError",
    "NodeLostError",
    "QueueFullError",
    "SoftTimeoutError",
    "WorkerCrashedError",
    "WorkerUnavailableError",
]


class JobError(Exception):
    """Describes how a job ended without a value; `error_code` decides whether it is retried."""

    error_code: str = "EXECUTION_ERROR"

    def __init__(self, message: str = "", *, error_code: str | None = None, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context
        if error_code is not None:
            self.error_code = str(error_code)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before a retry: the `retry_after=` that it was raised with."""
        return self.context.get("retry_after")

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the message alone and lose all else.
        return _rebuild, (type(self), self.message, self.__dict__)


def _rebuild(kind: type[JobError], message: str, attributes: dict[str, Any]) -> JobError:
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class JobTimeoutError(JobError, TimeoutError):
    """The job exceeded a time limit; the error code is TIMEOUT_ERROR, QUEUE_TIMEOUT or DEADLINE_EXCEEDED."""

    error_code = "TIMEOUT_ERROR"


class WorkerCrashedError(JobError):
    """The worker's process died under the job.

    Attributes:
        exit_code: the worker's exit code, where it exited.
        exit_signal: the number of the signal that killed it, where one did.
        output_tail: the end of what it wrote to stdout and stderr, with faulthandler's traceback.
    """

    error_code = "WORKER_CRASHED"

    def __init__(
        self,
        message: str = "",
        *,
        exit_code: int | None = None,
        exit_signal: int | None = None,
        output_tail: str = "",
        error_code: str | None = None,
        **context: Any,
    ) -> None:
        super().__init__(message, error_code=error_code, **context)
        self.exit_code = exit_code
        self.exit_signal = exit_signal
        self.output_tail = output_tail


class MemoryLimitError(WorkerCrashedError):
    """The attempt was killed: its process tree exceeded its memory_limit, or memory ran out and it held the most."""

    error_code = "MEMORY_LIMIT"


class NodeLostError(WorkerCrashedError):
    """The node that ran the attempt was lost: cut off from the network, stopped, or switched off.

    So is one whose guardian has died, the process that starts its workers: this machine, too.
    Nothing of the attempt runs any more. The job is not suspected of anything: it counts as no crash.
    """

    error_code = "NODE_LOST"


class WorkerUnavailableError(WorkerCrashedError):
    """No worker could be started for the job: its set-up hangs, or the system refuses a process, thread or descriptor.

    The job's function did not run, so the job is not suspected of anything: it counts as no crash.
    """

    error_code = "WORKER_UNAVAILABLE"


class JobCancelledError(JobError, CancelledError):
    """The job was cancelled by its future, its id, its flow run or the executor's shutdown."""

    error_code = "CANCELLED"


class JobSerializationError(JobError):
    """The function, an argument or the result could not be pickled or unpickled."""

    error_code = "SERIALIZATION_ERROR"


class DataCollectionException(JobError):
    """A collection function failed; `error_code` decides whether it is retried."""

    error_code = "COLLECTION_ERROR"

    def __init__(
        self, message: str = "", error_code: str | None = None, tool_name: str | None = None, **context: Any
    ) -> None:
        super().__init__(message, error_code=error_code, **context)
        self.tool_name = tool_name


class DataProcessingException(JobError):
    """A processing function failed; `error_code` decides whether it is retried."""

    error_code = "PROCESSING_ERROR"

    def __init__(
        self, message: str = "", error_code: str | None = None, processing_stage: str | None = None, **context: Any
    ) -> None:
        super().__init__(message, error_code=error_code, **context)
        self.processing_stage = processing_stage


class InvalidJobError(ValueError):
    """The job was refused at submit; the message names the problem and the fix."""

    error_code = "CONFIGURATION_ERROR"


class QueueFullError(Exception):
    """`max_pending` jobs are queued already."""


class ExecutorClosedError(RuntimeError):
    """A job was submitted to an executor that is shut down; it counts as cancelled."""

    error_code = "CANCELLED"


class ConfigurationError(ValueError):
    """The configuration is wrong; the message names the key, its value and what is allowed in one line."""

    error_code = "CONFIGURATION_ERROR"


class SoftTimeoutError(Exception):
    """Raised inside a function at its soft_timeout; where it is not caught, the attempt ends as TIMEOUT_ERROR."""

    error_code = "TIMEOUT_ERROR"
