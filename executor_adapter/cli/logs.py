"""Reads the lines of a job's log, as they are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from executor_adapter.cli.output import clock_time
from executor_adapter.job import TERMINAL
from executor_adapter.store import MAX_LOG_LINES, JobRecord, JobStore, LogLine
from executor_adapter.terminal import SafeText

POLL_SECONDS = 0.5
"""Seconds between reads of the store."""


def log_of(store: JobStore, job_id: str, *, tail: int, follow: bool) -> Iterator[LogLine]:
    """Yield the newest `tail` lines; with `follow`, also those that are written until the job ends."""
    after, limit = 0, min(tail, MAX_LOG_LINES)
    while True:
        record = store.get(job_id)
        # Read before the lines, so that the last lines are included.
        has_ended = record is None or record.status in TERMINAL
        for line in store.lines(job_id, after=after, limit=limit):
            after = line.seq
            yield line
        if has_ended and record is not None and record.traceback is not None:
            yield _failure(record, after + 1)
        if has_ended or not follow:
            return
        limit = MAX_LOG_LINES
        time.sleep(POLL_SECONDS)


def _failure(record: JobRecord, seq: int) -> LogLine:
    """Return how the job failed, as the last line of its log."""
    at = record.completed_at or record.created_at
    text = f"{record.error_code}: {record.error_message}\n{record.traceback}"
    return LogLine(record.job_id, record.attempt, seq, at, logging.ERROR, "traceback", text)


def line_text(line: LogLine) -> SafeText:
    """Return a log record as `12:03:04  WARNING  name: text`, and printed output as time and text."""
    text = SafeText(f"{clock_time(line.at)}  ", style="dim")
    if line.level:
        text.append(f"{logging.getLevelName(line.level):<8}", style=_style(line.level))
        text.append(f"{line.source}: ", style="dim")
    # Further lines are indented, so that none passes for a line of another record.
    return text.append(line.text.replace("\n", "\n    "), style="red" if line.source == "stderr" else "")


def _style(level: int) -> str:
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "cyan"
