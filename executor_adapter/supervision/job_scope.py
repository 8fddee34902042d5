"""Defines what a caller may set up around a job, and what becomes of the messages of a job without that."""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol

from executor_adapter.job import Job
from executor_adapter.pools import Assignment
from executor_adapter.supervision.output_forwarding import program_output

logger = logging.getLogger("executor_adapter")


class JobScope(Protocol):
    """Sets up what the function of one job sees around it, and receives its messages. Supervisor thread only."""

    def prepare(self, assignment: Assignment) -> None:
        """Give an attempt its `context` or `scope` before it goes to a pool. It must be quick and must not raise."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Receive a message of the function: topics and contents are those of `PoolSupervisor.on_message`."""

    def why_cancelled(self) -> str | None:
        """Return the message of a cancellation that happens now; None for the one that names what ended the job."""
        return None


def has_receiver(job: Job) -> bool:
    """Return whether somebody receives the job's messages, as a flow run does, and shows how its attempts end."""
    scope, driver = job.live.scope, job.live.driver
    if scope is not None and getattr(scope, "inner", scope) is not None:
        return True
    return driver is not None and driver.has_listeners


OutputMode = Literal["forward", "log", "drop"]
"""What becomes of the lines that a function prints in a worker process, where nobody else receives them."""


class UnclaimedMessages:
    """Receives what functions in worker processes log and print, where their job has no scope that does so."""

    def __init__(self, output: OutputMode) -> None:
        self._output = output

    def is_output_full(self, assignment: Assignment | None) -> bool | None:
        """Return whether the output of an attempt waits for this program's own streams; None if it goes elsewhere."""
        is_forwarded = self._output == "forward" and (assignment is None or not has_receiver(assignment.job))
        return program_output.is_full if is_forwarded else None

    def receive(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        """Log a log record. Write a line of output to this program's own, log it or drop it.

        Topics and contents are those of `PoolSupervisor.on_message`; other topics are ignored. `assignment`: None for
        output that belongs to no job.
        """
        if topic == "output" and self._output == "forward":
            # A worker of this machine waits before it has written too much, see `is_output_full`.
            program_output.write(*content, may_omit=assignment is not None and assignment.node is not None)
        elif assignment is None:
            return
        elif topic == "log":
            log_as = logging.getLogger(content["name"])
            if log_as.isEnabledFor(content["level"]):
                log_as.log(content["level"], "%s", content["message"], extra=_extra(assignment))
        elif topic == "output" and self._output == "log":
            logger.info("%s: %s", content[0], content[1], extra=_extra(assignment))


def _extra(assignment: Assignment) -> dict[str, Any]:
    return {"job_id": assignment.job.job_id, "attempt": assignment.number}
