"""Passes what functions in worker processes log and print to the logging of this process."""

from __future__ import annotations

import logging
from typing import Any

from executor_adapter.pools import Assignment

logger = logging.getLogger("executor_adapter")


def log_message(assignment: Assignment, topic: str, content: Any) -> None:
    """Log what a function in a worker process logged or printed; topics and contents are those of `on_message`."""
    extra = {"job_id": assignment.job.job_id, "attempt": assignment.number}
    if topic == "log":
        log_as = logging.getLogger(content["name"])
        if log_as.isEnabledFor(content["level"]):
            log_as.log(content["level"], "%s", content["message"], extra=extra)
    else:
        logger.info("%s: %s", content[0], content[1], extra=extra)
