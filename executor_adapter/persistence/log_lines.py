"""What the functions of an executor's jobs log and print, gathered for its store.

From worker processes it comes with all else they say; it is what the executor passes on to logging too. In threads and
coroutines it is noted as a record is made for a logger: what its level lets through. What is printed there goes to the
program's own output, and to no job's log.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from executor_adapter.job.model import Job
from executor_adapter.job.text import storable
from executor_adapter.pools.base import Assignment
from executor_adapter.store.base import JobStore, LogLine, StoreUnavailable
from executor_adapter.worker.context import JobContext, running_job

logger = logging.getLogger("executor_adapter.store")

WAITING = 20_000
"""Lines that wait for the store; past it the oldest are dropped, since jobs do not wait for it."""
AT_ONCE = 1000
LONGEST = 16_384


class LogLines:
    """The lines of the jobs in `live` that the store does not have yet. Any thread may add to them."""

    def __init__(self, live: Mapping[str, Job]) -> None:
        self._live = live
        self._lines: deque[LogLine] = deque(maxlen=WAITING)
        self._last = 0

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """A worker process said it: topics and contents are those of `pools.base.PoolSupervisor.on_message`."""
        if topic == "output":
            self._add(assignment.job.job_id, assignment.number, 0, *content)
        elif topic == "log":
            text = content["message"] if not content["exc_text"] else f"{content['message']}\n{content['exc_text']}"
            self._add(assignment.job.job_id, assignment.number, content["level"], content["name"], text)

    def made(self, record: logging.LogRecord, job: JobContext) -> None:
        """A function in this process made a record."""
        if job.job_id in self._live:
            self._add(job.job_id, job.attempt, record.levelno, record.name, record.getMessage())

    def write_to(self, store: JobStore) -> None:
        """Hand over what there is.

        Raises:
            StoreUnavailable: what has not been handed over stays.
        """
        while self._lines:
            batch = [self._lines.popleft() for _ in range(min(AT_ONCE, len(self._lines)))]
            try:
                store.write_lines(batch)
            except StoreUnavailable:
                self._lines.extendleft(reversed(batch))
                raise
            except Exception:
                logger.exception("%d lines of jobs' logs cannot be recorded", len(batch))

    def _add(self, job_id: str, attempt: int, level: int, source: str, text: str) -> None:
        # No two alike, and in order also across hosts, as far as their clocks agree.
        self._last = seq = max(time.time_ns(), self._last + 1)
        self._lines.append(LogLine(job_id, attempt, seq, time.time(), level, source, storable(text[:LONGEST])))


_listening: list[LogLines] = []
_make_record = logging.getLogRecordFactory()


def _note(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make_record(*args, **kwargs)
    if _listening and (job := running_job()) is not None:
        for lines in tuple(_listening):
            lines.made(record, job)
    return record


def listen(lines: LogLines) -> None:
    """Note what functions in this process log, from now on."""
    global _make_record
    if logging.getLogRecordFactory() is not _note:
        _make_record = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_note)
    _listening.append(lines)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_listening.clear)  # whoever would write the lines to a store is in the parent


def stop_listening(lines: LogLines) -> None:
    """... and no more. Whose factory ours was put around gets its place back, if nobody put one around ours."""
    _listening.remove(lines)
    if not _listening and logging.getLogRecordFactory() is _note:
        logging.setLogRecordFactory(_make_record)
