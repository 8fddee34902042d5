"""Reads what a worker's functions write to stdout and stderr, and reports it line by line, up to a limit.

Output that goes to the program's own streams is reported whole: while they take no more, the pipes are not read, and a
writer waits. Of other output a job may write LINE_BURST lines at once and then LINES_PER_SECOND. Further lines are left
out and counted, and the count is reported when the job ends. Then a writer is never held up for long. Log records count
as such lines in any case, and long lines as several. Progress, checkpoints and events are never left out.

**Which job a line belongs to.** A worker reports with the result whether the function wrote anything that is not read
yet (HAS_OUTPUT), and then waits until the host has read it (OUTPUT_READ): all of it belongs to that function. A worker
with further calls queued may be ahead of the results that have arrived. So its pipes are read with such a result alone,
or once nothing is queued behind: what is queued behind a call that goes on for long is taken back.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.worker import values

LINE_BURST = 10_000.0
LINES_PER_SECOND = 2_000.0
MAX_TAIL_BYTES = 8192
"""Bytes of the end of a job's output and log that are kept for the error, in case its worker dies."""

MAX_REFUSED_KEPT = 20
"""The last log records of a job that are kept for that end, though too many to be reported."""

READ_DELAY = 0.05
"""Seconds before the pipes of a worker with further calls queued, or without room for output, are looked at again."""

_READ_SIZE = 1 << 16
_MAX_LINE_BYTES = 1 << 14
"""A longer line is reported in several pieces."""
_BYTES_PER_LINE = 1024
"""A line counts as one more for each of these bytes."""


class LineAllowance:
    """Limits the lines of one job: a token bucket that holds LINE_BURST and gains LINES_PER_SECOND."""

    def __init__(self) -> None:
        self.refused = 0
        self._left = LINE_BURST
        self._at = time.monotonic()

    def take(self, length: int) -> bool:
        """Take what a line of `length` bytes costs. Return False, and count the line, if too little is left."""
        cost = 1 + length // _BYTES_PER_LINE
        if self._left < cost:
            now = time.monotonic()
            self._left = min(LINE_BURST, self._left + (now - self._at) * LINES_PER_SECOND)
            self._at = now
            if self._left < cost:
                self.refused += 1
                return False
        self._left -= cost
        return True

    def reset(self) -> int:
        """Refill the bucket for the next job. Return how many lines were refused to this one."""
        refused, self.refused = self.refused, 0
        self._left = LINE_BURST
        return refused


class WorkerOutput:
    """Reads the two pipes of one worker. `queue` is the worker's: the first assignment writes, or a later one."""

    def __init__(self, supervisor: PoolSupervisor, stdout_fd: int, stderr_fd: int, queue: deque[Assignment]) -> None:
        self.allowance = LineAllowance()
        self._supervisor = supervisor
        self._queue = queue
        self._tail = bytearray()
        self._held_records: deque[bytes | dict[str, Any]] = deque(maxlen=MAX_REFUSED_KEPT)
        """The last records of the first assignment since one was left out; those that were left out are pickled."""
        self.has_output = False
        """Whether the first assignment has written or logged anything."""
        self._pipes = [_Pipe(self, supervisor, "stdout", stdout_fd), _Pipe(self, supervisor, "stderr", stderr_fd)]
        for pipe in self._pipes:
            pipe.watch()

    def drain(self) -> None:
        """Read what is there now, all of which belongs to the first assignment."""
        for pipe in self._pipes:
            # Four reads take more than a pipe holds. There is a limit, since a process that the function left running
            # may write as fast as this reads.
            for _ in range(4):
                if not pipe.read():
                    break

    def finish(self) -> None:
        """Report the rest of the first assignment's output: it has ended, and leaves the queue now."""
        for pipe in self._pipes:
            pipe.end_line()
        self._tail.clear()
        self._held_records.clear()
        self.has_output = False
        if refused := self.allowance.reset():
            self._supervisor.on_message(self._writer(), "log", _omission_record(refused))

    def finish_dead(self) -> str:
        """Report the rest of the output of a worker that has died. Return the end of it."""
        self.drain()
        for held in self._held_records:
            self._add_line(held if isinstance(held, dict) else values.load_plain(held)[0][1])
        tail = self._tail.decode(errors="replace")
        self.finish()
        return tail

    def _writer(self) -> Assignment | None:
        return self._queue[0] if self._queue else None

    def add_record(self, fields: dict[str, Any]) -> None:
        """Add a log record of the first assignment to the end of its output: it may be on no stream."""
        if self._held_records:
            self._held_records.append(fields)  # Those before it come first.
        else:
            self._add_line(fields)

    def _add_line(self, fields: dict[str, Any]) -> None:
        text = f"{logging.getLevelName(fields['level'])} {fields['name']}: {fields['message']}\n"
        if fields["exc_text"]:
            text += f"{fields['exc_text']}\n"
        self.add_to_tail(text[-MAX_TAIL_BYTES:].encode(errors="backslashreplace"))

    def keep_refused(self, body: bytes) -> None:
        """Keep a log record that is left out, in case the worker dies next: it may say why."""
        if len(body) <= MAX_TAIL_BYTES:
            self._held_records.append(body)

    def add_to_tail(self, chunk: bytes) -> None:
        """Keep the end of what the first assignment has written and logged, in case its worker dies."""
        self.has_output = True
        self._tail += chunk
        del self._tail[:-MAX_TAIL_BYTES]

    def report_line(self, stream: str, line: bytes) -> None:
        """Report a line of the first assignment, unless it wrote too many."""
        writer = self._writer()
        if self._supervisor.is_output_full(writer) is not None or self.allowance.take(len(line)):
            self._supervisor.on_message(writer, "output", (stream, line.decode(errors="replace")))

    @property
    def must_wait(self) -> bool:
        """Whether the worker may be running a later call than the first in its queue, or its output has no room."""
        return len(self._queue) > 1 or self.is_full

    @property
    def is_full(self) -> bool:
        """Whether the streams that its output goes to take no more now."""
        return bool(self._supervisor.is_output_full(self._writer()))

    def close(self) -> None:
        """Close both pipes."""
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    """Reads one pipe and splits what arrives into lines."""

    def __init__(self, output: WorkerOutput, supervisor: PoolSupervisor, stream: str, fd: int) -> None:
        self.fd = fd
        self._output = output
        self._supervisor = supervisor
        self._delayed: Timer | None = None
        self._stream = stream
        self._partial = b""

    def watch(self) -> None:
        self._supervisor.watch(self.fd, self._on_readable)

    def _on_readable(self) -> None:
        if self._output.must_wait:
            self._supervisor.unwatch(self.fd)
            self._delayed = self._supervisor.call_at(self._supervisor.now() + READ_DELAY, self._look_again)
        else:
            self.read()

    def _look_again(self) -> None:
        self._delayed = None
        self.watch()

    def read(self) -> bool:
        """Read once. Return False if there was nothing to read."""
        if self.fd < 0:
            return False
        try:
            chunk = os.read(self.fd, _READ_SIZE)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            return False
        self._output.add_to_tail(chunk)
        self._split(chunk)
        return True

    def _split(self, chunk: bytes) -> None:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._output.report_line(self._stream, line.removesuffix(b"\r"))
        if len(self._partial) > _MAX_LINE_BYTES:
            self.end_line()

    def end_line(self) -> None:
        """Report a line that has no end yet."""
        if self._partial:
            partial, self._partial = self._partial, b""
            self._output.report_line(self._stream, partial)

    def close(self) -> None:
        if self.fd >= 0:
            self.end_line()
            if self._delayed is not None:
                self._delayed.cancel()
            else:
                self._supervisor.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1


def _omission_record(count: int) -> dict[str, Any]:
    return {
        "name": "executor_adapter.job",
        "level": logging.WARNING,
        "message": f"{count} lines of output and log were left out: more than {LINES_PER_SECOND:.0f} a second",
        "created": time.time(),
        "exc_text": None,
    }
