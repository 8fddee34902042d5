"""What a job says becomes lines of its task run's log."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Mapping
from typing import Any

from prefect.context import TaskRunContext
from prefect.logging.loggers import get_run_logger, print_as_log

from executor_adapter.exceptions.display import shown, traceback_text
from executor_adapter.job.text import storable

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]

job_logger = logging.getLogger("executor_adapter.job")
"""That of `JobContext.logger`."""

_STREAM_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"level"}


def keep_print_patched() -> None:
    """Let `print` be logged wherever the task run around it says so, for good; elsewhere it prints.

    Prefect patches `print` for each task and puts back what it found; of tasks that overlap, the first to end would
    put back the plain one under the feet of the others.
    """
    builtins.print = print_as_log


class ToRunLog(logging.Filter):
    """Hands what a job in this process says by `current_job().logger` to the log of the task run around it.

    On the logger itself, so that Prefect's console shows the line once.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """False where there is a task run, and its log has it."""
        if TaskRunContext.get() is None:
            return True
        fields = vars(record) | {"level": record.levelno, "message": record.getMessage()}
        _log_record(get_run_logger(), fields)
        return False


def log_message(logger: RunLogger, topic: str, content: Any) -> None:
    """Log what a function said: a log record or a line of output; other topics are not for a log.

    `logger` is the task run's; topics and contents are those of `pools.base.PoolSupervisor.on_message`.
    """
    if topic == "log":
        _log_record(logger, content)
    elif topic == "output":
        stream, text = content
        logger.log(_STREAM_LEVELS[stream], "%s", text)


def _log_record(logger: RunLogger, fields: Mapping[str, Any]) -> None:
    """Handle a record of another process as if it had been logged here: with its own time, level and name."""
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
    """Say how an attempt failed: that the next follows in `delay` seconds, or, where none does, the whole traceback."""
    if delay is not None:
        logger.warning("Attempt failed: %s. Next attempt in %.1f s", shown(error), delay)
        return
    log_failure(logger, f"Job failed: {shown(error)}", error)


def log_failure(logger: RunLogger, message: str, error: BaseException | None) -> None:
    """Log an error, with its traceback where there is one: in words that a server can hold, so made here and not by the
    handlers."""
    trace = "" if error is None else traceback_text(error, error.__traceback__).rstrip()
    fields = {
        "name": logger.name,
        "level": logging.ERROR,
        "message": message,
        "created": time.time(),
        "exc_text": trace,
    }
    _log_record(logger, fields)


job_logger.addFilter(ToRunLog())
job_logger.setLevel(logging.INFO)
