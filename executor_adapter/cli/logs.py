"""The lines of a job's log, as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from rich.text import Text

from executor_adapter.cli.output import clock_time
from executor_adapter.job.status import TERMINAL
from executor_adapter.store import MAX_LOG_LINES, JobStore, LogLine

PAUSE = 0.5
"""Seconds between looks."""


def log_of(store: JobStore, job_id: str, *, tail: int, follow: bool) -> Iterator[LogLine]:
    """The newest `tail` lines; with `follow` also those that come, until the job is over."""
    after, most = 0, min(tail, MAX_LOG_LINES)
    while True:
        record = store.get(job_id)
        is_over = record is None or record.status in TERMINAL  # asked first: what it said last is there then
        for line in store.lines(job_id, after=after, limit=most):
            after = line.seq
            yield line
        if is_over or not follow:
            return
        most = MAX_LOG_LINES
        time.sleep(PAUSE)


def line_text(line: LogLine) -> Text:
    """`12:03:04  WARNING  name: text`; of what was printed the text alone says enough."""
    text = Text(f"{clock_time(line.at)}  ", style="dim")
    if line.level:
        text.append(f"{logging.getLevelName(line.level):<8}", style=_style(line.level))
        text.append(f"{line.source}: ", style="dim")
    return text.append(line.text, style="red" if line.source == "stderr" else "")


def _style(level: int) -> str:
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "cyan"
