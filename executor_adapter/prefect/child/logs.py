"""Writes the messages of a job to the log of its task run."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Mapping
from typing import Any

from prefect.context import TaskRunContext
from prefect.logging.loggers import get_run_logger, print_as_log

from executor_adapter.exceptions import JobTimeoutError
from executor_adapter.exceptions.display import repr_of, traceback_text
from executor_adapter.job import storable
from executor_adapter.worker import wire

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]

job_logger = logging.getLogger("executor_adapter.job")
"""The logger behind `JobContext.logger`."""

_STREAM_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"level"}


def patch_print() -> None:
    """Replace `print`, for the rest of the process, by one that logs within task runs with `log_prints`.

    Elsewhere it prints. Prefect replaces `print` for each task and restores it afterwards: of tasks that overlap, the
    first to end would restore the plain `print` while the others still run.
    """
    builtins.print = print_as_log


class RunLogFilter(logging.Filter):
    """Sends records of `current_job().logger` in this process to the log of the task run around the job.

    It is a filter of the logger itself, so that Prefect's console shows each line once.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False where there is a task run: its log has the record."""
        if TaskRunContext.get() is None:
            return True
        fields = vars(record) | {"level": record.levelno, "message": record.getMessage()}
        _log_record(get_run_logger(), fields)
        return False


def log_message(logger: RunLogger, topic: str, content: Any) -> None:
    """Log a message of a function if it is a log record or a line of output; ignore other topics.

    `logger` is the task run's; topics and contents are those of `pools.base.PoolSupervisor.on_message`.
    """
    if topic == "log":
        _log_record(logger, content)
    elif topic == "output":
        stream, text = content
        logger.log(_STREAM_LEVELS[stream], "%s", text)


def _log_record(logger: RunLogger, fields: Mapping[str, Any]) -> None:
    """Handle a record of another process with its original time, level and name."""
    if not logger.isEnabledFor(fields["level"]):
        return
    target, run = (logger.logger, logger.extra) if isinstance(logger, logging.LoggerAdapter) else (logger, None)
    extra = {name: value for name, value in fields.items() if name not in _RESERVED}
    record = logging.makeLogRecord(
        {
            **extra,
            **(run or {}),
            "name": fields["name"],
            "levelno": fields["level"],
            "levelname": logging.getLevelName(fields["level"]),
            "msg": storable(fields["message"]),
            "created": fields["created"],
            "msecs": fields["created"] % 1 * 1000,
            "exc_text": storable(fields.get("exc_text") or "") or None,
        }
    )
    target.handle(record)


def log_failed_attempt(logger: RunLogger, error: BaseException, delay: float | None) -> None:
    """Log how an attempt failed: with the seconds until the next one, or, if none follows, with the traceback."""
    if delay is not None:
        logger.warning("Attempt failed: %s. Next attempt in %.1f s%s", repr_of(error), delay, position_in(error))
        return
    log_failure(logger, f"Job failed: {repr_of(error)}", error)


def position_in(error: object) -> str:
    """Return, on further lines, where the function was when its time was over; empty for other errors."""
    cause = error.__cause__ if isinstance(error, JobTimeoutError) else None
    return f"\n{cause.text}" if isinstance(cause, wire.RemoteTraceback) else ""


def log_failure(logger: RunLogger, message: str, error: BaseException | None) -> None:
    """Log an error, with its traceback if there is one.

    The traceback is formatted here, not by the handlers, so that it holds only characters that a server can store.
    """
    trace = "" if error is None else traceback_text(error, error.__traceback__).rstrip()
    fields = {
        "name": logger.name,
        "level": logging.ERROR,
        "message": message,
        "created": time.time(),
        "exc_text": trace,
    }
    _log_record(logger, fields)


job_logger.addFilter(RunLogFilter())
job_logger.setLevel(logging.INFO)
