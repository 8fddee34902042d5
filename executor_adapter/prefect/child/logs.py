"""Writes the messages of a job to the log of its task run."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from prefect.context import TaskRunContext
from prefect.logging.loggers import get_run_logger, print_as_log
from prefect.settings import get_current_settings

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.exceptions import JobTimeoutError, WorkerCrashedError
from executor_adapter.job import ErrorCode, storable
from executor_adapter.supervision.messages import make_record, write_line

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]

job_logger = logging.getLogger("executor_adapter.job")
"""The logger behind `JobContext.logger`."""

_RUN_LOGGERS = ("prefect.task_runs", "prefect.flow_runs", "executor_adapter")
_STREAM_LEVELS = {"stdout": logging.INFO, "stderr": logging.WARNING}


def patch_print() -> None:
    """Replace `print`, for the rest of the process, by one that logs within task runs with `log_prints`.

    Elsewhere it prints. Prefect replaces `print` for each task and restores it afterwards: of tasks that overlap, the
    first to end would restore the plain `print` while the others still run.
    """
    builtins.print = print_as_log


def send_to_run_log(record: logging.LogRecord) -> bool:
    """Send a record of `current_job().logger` in this process to the log of the task run around the job.

    It is a filter of the logger itself, so that Prefect's console shows each line once. Returns False where there is a
    task run: its log has the record.
    """
    if TaskRunContext.get() is None:
        return True
    _log_record(get_run_logger(), vars(record) | {"level": record.levelno, "message": record.getMessage()})
    return False


def log_message(logger: RunLogger, topic: str, content: Any, *, log_prints: bool) -> None:
    """Pass on what a function in a worker process logged or printed, to where a task of this process would write it.

    What Prefect's run loggers, `PREFECT_LOGGING_EXTRA_LOGGERS` and this package log is written to `logger`, the task
    run's. Other log records go to the logger of their name here, and output to this process's, but to the task run's
    log with `log_prints`. Topics and contents are those of `pools.base.PoolSupervisor.on_message`; other topics are
    ignored.
    """
    if topic == "log":
        own = logging.getLogger(content["name"])
        if _is_below(content["name"], _RUN_LOGGERS):
            _log_record(logger, content)
        elif not _is_below(content["name"], get_current_settings().logging.extra_loggers or ()):
            _log_record(own, content)
        elif own.isEnabledFor(content["level"]):  # Its own level decides, and not that of the task run's logger.
            _handle_record(logger, content)
    elif topic == "output":
        stream, text = content
        if log_prints:
            logger.log(_STREAM_LEVELS[stream], "%s", text)
        else:
            write_line(stream, text)


def _is_below(name: str, names: Iterable[str]) -> bool:
    """Return whether the logger is one of `names`, or below one."""
    return any(name == each or each == "root" or name.startswith(f"{each}.") for each in names)


def _log_record(logger: RunLogger, fields: Mapping[str, Any]) -> None:
    if logger.isEnabledFor(fields["level"]):
        _handle_record(logger, fields)


def _handle_record(logger: RunLogger, fields: Mapping[str, Any]) -> None:
    """Handle a record of another process with its original time, level, name and place in the source."""
    target, run = (logger.logger, logger.extra) if isinstance(logger, logging.LoggerAdapter) else (logger, None)
    shown = {"message": storable(fields["message"]), "exc_text": storable(fields["exc_text"] or "") or None}
    # A flow or task that the function calls in its worker has a log of its own: its fields win over the run's.
    target.handle(make_record({**(run or {}), **fields, **shown}, logging.LogRecord))


def log_failed_attempt(
    logger: RunLogger, shown: str, error: ErrorFacts | None, *, delay: float | None, reason: str = ""
) -> None:
    """Log how an attempt failed or was cancelled: with the seconds until the next one, else a failure's traceback.

    `shown` is what has failed it, `error` what is known of that if it is an exception, and `reason` why this follows.
    The text is made here and not by the handlers: so it holds only characters that a server can store, and no frames of
    the engine, which say nothing about the function.
    """
    if delay is not None:
        logger.warning("Attempt failed: %s. Next attempt in %.1f s%s%s", shown, delay, reason, _details_of(error))
        return
    if error is not None and error.code == ErrorCode.CANCELLED:
        logger.warning("Job cancelled: %s", error.text)
        return
    fields = {
        "name": logger.name,
        "level": logging.ERROR,
        "message": f"Job failed: {shown}{reason}",
        "created": time.time(),
        "exc_text": None if error is None else error.traceback,
    }
    _log_record(logger, fields)


def _details_of(error: ErrorFacts | None) -> str:
    """Return, on further lines, where the function was when its time was over, or what it wrote before a crash."""
    if error is None or not error.traceback or not (error.is_a(WorkerCrashedError) or error.is_a(JobTimeoutError)):
        return ""
    return f"\n{storable(error.traceback)}"


job_logger.addFilter(send_to_run_log)
job_logger.setLevel(logging.INFO)
