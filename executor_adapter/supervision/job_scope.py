"""Defines what a caller may set up around a job when it submits it, and logs the messages of a job without that."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from executor_adapter.pools import Assignment

logger = logging.getLogger("executor_adapter")


class JobScope(Protocol):
    """Sets up what the function of one job sees around it, and receives its messages. Supervisor thread only."""

    def prepare(self, assignment: Assignment) -> None:
        """Give an attempt its `context` or `scope` before it goes to a pool. It must be quick and must not raise."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Receive a message of the function: topics and contents are those of `PoolSupervisor.on_message`."""


def log_message(assignment: Assignment, topic: str, content: Any) -> None:
    """Log what a function in a worker process logged or printed; topics and contents are those of `on_message`."""
    extra = {"job_id": assignment.job.job_id, "attempt": assignment.number}
    if topic == "log":
        log_as = logging.getLogger(content["name"])
        if log_as.isEnabledFor(content["level"]):
            log_as.log(content["level"], "%s", content["message"], extra=extra)
    else:
        logger.info("%s: %s", content[0], content[1], extra=extra)
