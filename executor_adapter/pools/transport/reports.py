"""What a worker says, made into what the supervisor is told."""

from __future__ import annotations

import logging
import os
import pickle
from typing import Any

from executor_adapter.exceptions import JobError, JobSerializationError
from executor_adapter.exceptions.display import set_cause, text_of
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor
from executor_adapter.worker import values, wire

logger = logging.getLogger("executor_adapter.process")


def tell_result(
    supervisor: PoolSupervisor, assignment: Assignment, kind: int, flags: int, body: bytes, fd: int
) -> None:
    """Tell how an attempt ended; a result that cannot be loaded here is UNSENDABLE, whatever it raises."""
    if flags & wire.NOTHING:
        supervisor.ended(assignment, Ending.RETURNED, None)
        return
    if fd < 0 and flags & wire.IN_FILE:
        failure = JobSerializationError(
            f"the result is of {values.MIN_MEMORY_FILE_BYTES} bytes or more, and no file descriptor is left for it: "
            "raise the limit (ulimit -n), or return less"
        )
        supervisor.ended(assignment, Ending.UNSENDABLE, error=failure)
        return
    try:
        content = pickle.loads(body) if fd < 0 else values.load_from_file(fd, body)
    except BaseException as error:
        failure = JobSerializationError(f"the result cannot be unpickled: {type(error).__name__}: {text_of(error)}")
        failure.__cause__ = error
        supervisor.ended(assignment, Ending.UNSENDABLE, error=failure)
        return
    if kind == wire.RETURNED:
        supervisor.ended(assignment, Ending.RETURNED, content)
    else:
        _tell_failure(supervisor, assignment, kind, *content)


def _tell_failure(supervisor: PoolSupervisor, assignment: Assignment, kind: int, told: Any, text: str) -> None:
    raised = kind == wire.RAISED
    error: Any = told if raised else JobSerializationError(told)
    if not isinstance(error, BaseException):  # what an exception is pickled as is its class's to say
        error = JobError(f"the function raised an exception that became a {type(told).__name__} on its way")
    set_cause(error, wire.RemoteTraceback(text))
    supervisor.ended(assignment, Ending.RAISED if raised else Ending.UNSENDABLE, error=error)


def tell_said(supervisor: PoolSupervisor, assignment: Assignment | None, body: bytes) -> None:
    try:
        topic, content = pickle.loads(body)
    except BaseException:
        logger.exception("what a job said cannot be unpickled")
        return
    supervisor.on_message(assignment, topic, content)


def discard(fd: int) -> None:
    """Nobody wants the large value that came along."""
    if fd >= 0:
        os.close(fd)
