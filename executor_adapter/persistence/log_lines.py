"""Log lines: what the functions of an executor's jobs log and print, collected for its store.

Worker processes send both along with their other messages. In threads and coroutines of this process, a log record is
collected when a logger makes it, if the logger's level lets it through. What a function prints there goes to the
program's own output and to no job's log.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from executor_adapter.job import Job, storable
from executor_adapter.pools.base import Assignment
from executor_adapter.store import JobStore, LogLine, StoreUnavailableError
from executor_adapter.worker.context import JobContext, running_job

logger = logging.getLogger("executor_adapter.store")

MAX_WAITING_LINES = 20_000
"""Lines that wait for the store. Past it the oldest are dropped, because jobs do not wait for it."""
BATCH_SIZE = 1000
"""Lines that are written in one transaction."""
MAX_LINE_LENGTH = 16_384
"""Characters; the rest of a longer line is cut off. While more than a batch waits, a 32nd of it remains of a printed
line: a job may print far more than a store can take."""


class LogLines:
    """Holds the lines of live jobs that the store does not have yet. Any thread may add to them."""

    def __init__(self, live: Mapping[str, Job]) -> None:
        self._live = live
        self._lines: deque[LogLine] = deque(maxlen=MAX_WAITING_LINES)
        self._last_seq = 0
        self._lock = threading.RLock()  # Re-entrant: a signal handler may log while its thread holds it.

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Receive a message of a worker process; topics and contents are those of `pools.base.PoolSupervisor`."""
        if topic == "output":
            self._add(assignment.job.job_id, assignment.number, 0, *content)
        elif topic == "log":
            text = "\n".join(filter(None, (content["message"], content["exc_text"])))
            self._add(assignment.job.job_id, assignment.number, content["level"], content["name"], text)

    def on_record(self, record: logging.LogRecord, job: JobContext) -> None:
        """Receive a log record that a function of this process made."""
        if job.job_id not in self._live:
            return
        try:
            text = record.getMessage()
        except Exception:  # Its arguments do not fit: the logger's handlers say so, and it harms no job.
            text = record.msg if type(record.msg) is str else type(record.msg).__name__
        text += f"\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""
        self._add(job.job_id, job.attempt, record.levelno, record.name, text)

    def write_to(self, store: JobStore) -> None:
        """Write all lines that are waiting.

        Raises:
            StoreUnavailableError: the lines that are not written go on waiting.
        """
        while self._lines:
            batch = [self._lines.popleft() for _ in range(min(BATCH_SIZE, len(self._lines)))]
            try:
                store.write_lines(batch)
            except StoreUnavailableError:
                with self._lock:  # A full deque would drop the newest lines for them.
                    room = MAX_WAITING_LINES - len(self._lines)
                    self._lines.extendleft(reversed(batch[max(0, len(batch) - room) :]))
                raise
            except Exception:
                logger.exception("%d lines of job logs cannot be recorded and are dropped", len(batch))

    def _add(self, job_id: str, attempt: int, level: int, source: str, text: str) -> None:
        longest = MAX_LINE_LENGTH if level or len(self._lines) < BATCH_SIZE else MAX_LINE_LENGTH // 32
        text = storable(text[:longest])
        with self._lock:
            # Unique, and in order also across hosts as far as their clocks agree.
            self._last_seq = seq = max(time.time_ns(), self._last_seq + 1)
            self._lines.append(LogLine(job_id, attempt, seq, time.time(), level, source, text))


_capturing: list[LogLines] = []
_making = threading.local()
"""Whether this thread is inside a factory of ours: several of them may be around each other."""


class _CapturingFactory:
    """A log record factory around another one, which never changes: a library may have put its own around this one."""

    def __init__(self, inner: Callable[..., logging.LogRecord]) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record, and pass it on if no factory around this one does so."""
        if not _capturing or getattr(_making, "a_record", False) or (job := running_job()) is None:
            return self.inner(*args, **kwargs)
        _making.a_record = True
        try:
            record = self.inner(*args, **kwargs)
        finally:
            _making.a_record = False
        for lines in tuple(_capturing):
            lines.on_record(record, job)
        return record


def start_capturing(lines: LogLines) -> None:
    """Pass on to `lines` what functions in this process log, by a record factory around the present one."""
    present = logging.getLogRecordFactory()
    if not isinstance(present, _CapturingFactory):
        logging.setLogRecordFactory(_CapturingFactory(present))
    _capturing.append(lines)


# The recorder that would write the lines runs in the parent.
os.register_at_fork(after_in_child=_capturing.clear)


def stop_capturing(lines: LogLines) -> None:
    """Undo `start_capturing`; the last one restores the factory inside ours, unless another was put around it."""
    _capturing.remove(lines)
    present = logging.getLogRecordFactory()
    if not _capturing and isinstance(present, _CapturingFactory):
        logging.setLogRecordFactory(present.inner)
