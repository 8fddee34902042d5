"""What functions in other processes log and print, passed on to the logging of this one."""

from __future__ import annotations

import logging
from typing import Any

from executor_adapter.pools.base import Assignment

logger = logging.getLogger("executor_adapter")


def log_said(assignment: Assignment, topic: str, content: Any) -> None:
    """Pass on what a function in another process logged or printed: topics and contents are those of `on_message`."""
    extra = {"job_id": assignment.job.job_id, "attempt": assignment.number}
    if topic == "log":
        log_as = logging.getLogger(content["name"])
        if log_as.isEnabledFor(content["level"]):
            log_as.log(content["level"], "%s", content["message"], extra=extra)
    else:
        logger.info("%s: %s", content[0], content[1], extra=extra)
