"""What functions say while they run: who receives it, and how it comes to this program's own streams and log.

A terminal, a pipe that nobody reads, a stream or a log handler of the user's may hold up a writer for any time. So the
supervisor's thread only queues lines and log records, also the package's own, and a thread of its own writes them in
order. While MAX_WAITING characters wait, nothing more is read of what workers print: a job that prints more waits in
its write, as a child that shares the program's streams does. Log records, and the lines of a node of a cluster, cannot
be made to wait: where none is written within MAX_PAUSE_SECONDS, further ones are left out, and counted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from executor_adapter.job import Job
from executor_adapter.pools.base import Assignment
from executor_adapter.supervision.thread import supervisor_threads

logger = logging.getLogger("executor_adapter")

MAX_WAITING = 1 << 20
"""Characters that wait to be written."""
MAX_WAIT_SECONDS = 1.0
"""Seconds that a caller waits at most until the lines of its job are written."""
MAX_PAUSE_SECONDS = 0.1
"""Seconds that the supervisor waits at most, once, until there is room for what may be left out."""
RECORD_SIZE = 256
"""What a log record counts beside the characters of its text."""


class ProgramOutput:
    """Holds the lines and log records that are not written yet. Any thread may use it."""

    def __init__(self) -> None:
        self.pending = False
        """Whether any of them is not written."""
        self._changed = threading.Condition()
        self._calls: deque[tuple[int, Callable[..., object], tuple[Any, ...]]] = deque()
        """The size of each, and the call that writes it."""
        self._omitted = 0
        self._waiting = 0
        """The sizes of these together."""
        self._is_stuck = False
        """Whether a caller has waited in vain; none waits again until all is written."""
        self._thread: threading.Thread | None = None

    def write(self, stream: str, text: str, *, may_omit: bool = False) -> None:
        """Let a line be written to `stream`, which is "stdout" or "stderr"; never wait for that.

        `may_omit`: leave it out if too much waits, since its writer cannot be held up.
        """
        self.call(write_line, stream, text, size=len(text) + 1, may_omit=may_omit)

    def call(self, write: Callable[..., object], *args: Any, size: int, may_omit: bool = True) -> None:
        """Let `write(*args)` be called, after what was queued before; where it raises, write the error to stderr."""
        with self._changed:
            if may_omit and self.is_full:
                if not self._is_stuck and self._thread is not threading.current_thread():  # Which makes the room.
                    self._is_stuck = not self._changed.wait_for(lambda: not self.is_full, MAX_PAUSE_SECONDS)
                if self.is_full:
                    self._omitted += 1
                    return
            self._calls.append((size, write, args))
            self._waiting += size
            self.pending = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="executor-output", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # No thread can be started now: the next line tries again.
                    self._thread = None
            self._changed.notify_all()

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that its writers are to wait."""
        return self._waiting >= MAX_WAITING and self._thread is not None

    def wait(self) -> None:
        """Wait until all lines are written, for at most MAX_WAIT_SECONDS."""
        with self._changed:
            if not self._is_stuck and self._thread is not threading.current_thread():
                self._is_stuck = not self._changed.wait_for(lambda: not self.pending, MAX_WAIT_SECONDS)

    def finish(self) -> None:
        """Wait until all lines are written, however long that takes, since the interpreter ends: as for its own."""
        while self._calls and self._thread is None:  # No thread can be started any more.
            self._write_next()
        if not self._wait_for_all(MAX_WAIT_SECONDS):
            logger.warning("the program ends once its stdout, stderr and log have taken what its jobs have said")
            self._wait_for_all(None)

    def _wait_for_all(self, timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(self._is_all_written, timeout)

    def _is_all_written(self) -> bool:
        return not self.pending or self._thread is None

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._calls and self._omitted:
                    text = "%d lines were left out: this program's stdout or log is too slow"
                    self._calls.append((0, logger.warning, (text, self._omitted)))
                    self._omitted = 0
                if not self._calls:
                    self.pending = self._is_stuck = False
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._calls)
            self._write_next()

    def _write_next(self) -> None:
        with self._changed:
            size, write, args = self._calls.popleft()
            self._waiting -= size
            self._changed.notify_all()
        call_shown(write, *args)


def write_line(stream: str, text: str) -> None:
    """Write a line to this program's stdout or stderr, as they are now: replaced, captured, closed or None."""
    target = getattr(sys, stream)
    with contextlib.suppress(Exception):  # It is None, closed, or of another's class, or nobody reads it.
        try:
            target.write(f"{text}\n")
        except UnicodeEncodeError as error:
            target.write(f"{text}\n".encode(error.encoding, "backslashreplace").decode(error.encoding))


program_output = ProgramOutput()

# The thread stays in the parent, and may have held the lock.
os.register_at_fork(after_in_child=program_output.__init__)  # type: ignore[misc]


def call_shown(call: Callable[..., object], *args: Any) -> None:
    """Call `call(*args)`, and write to stderr what a handler or filter of the program's logging raises in it."""
    try:
        call(*args)
    except Exception:
        program_output.write("stderr", traceback.format_exc(), may_omit=True)  # Stderr may be closed, or block.


def _handle(handle: Callable[[logging.LogRecord], object], record: logging.LogRecord) -> None:
    """Let the program's handlers have one of the package's own records; they must not hold up a supervisor."""
    if threading.get_ident() in supervisor_threads:
        program_output.call(handle, record, size=RECORD_SIZE)
    else:
        call_shown(handle, record)


for _name in ("", ".cluster", ".coroutine", ".job", ".loop", ".memory", ".prefect", ".process", ".store", ".thread"):
    _logger = logging.getLogger(f"executor_adapter{_name}")
    _logger.handle = functools.partial(_handle, _logger.handle)  # type: ignore[method-assign]


class JobScope(Protocol):
    """Sets up what the function of one job sees around it, and receives its messages. Supervisor thread only."""

    receives: bool = True
    """Whether it receives the messages; otherwise they go where those of a job without a scope go."""

    def prepare(self, assignment: Assignment) -> None:
        """Give an attempt its `context` or `scope` before it goes to a pool. It must be quick and must not raise."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Receive a message of the function: topics and contents are those of `PoolSupervisor.on_message`."""


def has_receiver(job: Job) -> bool:
    """Return whether somebody receives the job's messages, as a flow run does, and shows how its attempts end."""
    scope, driver = job.live.scope, job.live.driver
    return (scope is not None and scope.receives) or (driver is not None and driver.on_message is not None)


OutputMode = Literal["forward", "log", "drop"]
"""What becomes of the lines that a function prints in a worker process, where nobody else receives them."""


def is_output_full(mode: OutputMode, assignment: Assignment | None) -> bool | None:
    """Return whether the output of an attempt waits for this program's own streams; None if it goes elsewhere."""
    is_forwarded = mode == "forward" and (assignment is None or not has_receiver(assignment.job))
    return program_output.is_full if is_forwarded else None


def show_message(mode: OutputMode, assignment: Assignment | None, topic: str, content: Any) -> None:
    """Show what a function in a worker process logs and prints, where its job has no scope that receives it.

    Log a log record. Write a line of output to this program's own, log it or drop it. Topics and contents are those of
    `PoolSupervisor.on_message`; other topics are ignored. `assignment`: None for output that belongs to no job.
    """
    if topic == "output" and mode == "forward":
        # A worker of this machine waits before it has written too much, see `is_output_full`.
        program_output.write(*content, may_omit=assignment is not None and assignment.node is not None)
    elif assignment is None:
        return
    elif topic == "log":
        source = logging.getLogger(content["name"])
        if source.isEnabledFor(content["level"]):
            size = RECORD_SIZE + len(content["message"]) + len(content["exc_text"] or "")
            program_output.call(_log, source, content | _extra(assignment), size=size)
    elif topic == "output" and mode == "log":
        logger.info("%s: %s", content[0], content[1], extra=_extra(assignment))


def _log(source: logging.Logger, fields: Mapping[str, Any]) -> None:
    source.handle(make_record(fields, source.makeRecord))


def _extra(assignment: Assignment) -> dict[str, Any]:
    return {"job_id": assignment.job.job_id, "attempt": assignment.number}


def make_record(fields: Mapping[str, Any], make: Callable[..., logging.LogRecord]) -> logging.LogRecord:
    """Make, with `make`, the record of another process: with its time, place in the source, traceback and extra fields.

    `make` takes the arguments of `logging.LogRecord`.
    """
    place = fields.get("pathname", ""), fields.get("lineno", 0)
    record = make(fields["name"], fields["level"], *place, fields["message"], (), None, fields.get("funcName"))
    created: float = fields["created"]
    extra = {name: value for name, value in fields.items() if name not in _OF_EACH_RECORD}
    vars(record).update(extra, created=created, msecs=created % 1 * 1000, exc_text=fields["exc_text"])
    return record


_OF_EACH_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"level", "message"}
