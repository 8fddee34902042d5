"""Turns the frames of a worker into reports to the supervisor."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import JobError, JobSerializationError
from executor_adapter.exceptions.display import set_cause, text_of
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor
from executor_adapter.worker import values, wire

logger = logging.getLogger("executor_adapter.process")


def report_result(
    supervisor: PoolSupervisor, assignment: Assignment, kind: int, flags: int, body: bytes, fd: int
) -> None:
    """Report how an attempt ended. A result that cannot be loaded here is UNSENDABLE, whatever its loading raises."""
    if flags & wire.NO_VALUE:
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
        content = pickle.loads(body) if fd < 0 else values.load_memory_file(fd, body)
    except BaseException as error:
        failure = JobSerializationError(f"the result cannot be unpickled: {type(error).__name__}: {text_of(error)}")
        failure.__cause__ = error
        supervisor.ended(assignment, Ending.UNSENDABLE, error=failure)
        return
    if kind == wire.RETURNED:
        supervisor.ended(assignment, Ending.RETURNED, content)
    else:
        _report_failure(supervisor, assignment, kind, *content)


def _report_failure(
    supervisor: PoolSupervisor, assignment: Assignment, kind: int, received: Any, traceback: str
) -> None:
    raised = kind == wire.RAISED
    error: Any = received if raised else JobSerializationError(received)
    if not isinstance(error, BaseException):  # The class of an exception decides what it is pickled as.
        error = JobError(f"the function raised an exception that was unpickled as a {type(received).__name__}")
    set_cause(error, wire.RemoteTraceback(traceback))
    supervisor.ended(assignment, Ending.RAISED if raised else Ending.UNSENDABLE, error=error)


def report_message(
    supervisor: PoolSupervisor,
    assignment: Assignment | None,
    body: bytes,
    on_record: Callable[[dict[str, Any]], None],
) -> None:
    """Report a message of a running function, a log record to `on_record` too.

    A message that cannot be unpickled is logged and left out.
    """
    try:
        topic, content = pickle.loads(body)
    except BaseException:
        logger.exception("a message of a job cannot be unpickled")
        return
    if topic == "log" and assignment is not None:
        on_record(content)
    supervisor.on_message(assignment, topic, content)


def discard_file(fd: int) -> None:
    """Close the memory file of a result that is not used; -1 if it has none."""
    if fd >= 0:
        os.close(fd)
