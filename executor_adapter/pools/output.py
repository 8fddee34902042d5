"""What a worker's functions write to stdout and stderr, line by line, and how much of it is told.

A job may say LINES_BURST lines at once and LINES_PER_SECOND on; what is more is left out, counted, and the count told
when the job ends. Log records count as lines, long lines as several. Progress, checkpoints and events are never left
out. A writer is never held up for long: the pipes are always read.

**Whose it is.** A worker with calls lying ready may be further than the results that have arrived, so what is read from
it then is held until the next result, whose times tell: what was read before that function ended is its, unless it was
the one before's. A function that wrote what is not read yet says so with its result (OUTPUT), and its worker waits
until it is read: it is all that function's.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any

from executor_adapter.pools.base import Assignment, Supervisor

LINES_BURST = 10_000.0
LINES_PER_SECOND = 2_000.0
TAIL = 8192
"""Bytes of the end of a job's output that are kept for the error, should its worker die."""

_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 14
_LONG = 1024


class Allowance:
    """A token bucket, in lines."""

    def __init__(self) -> None:
        self.refused = 0
        self._left = LINES_BURST
        self._at = time.monotonic()

    def grant(self, length: int) -> bool:
        """Whether a line of so many bytes may be told."""
        cost = 1 + length // _LONG
        if self._left < cost:
            now = time.monotonic()
            self._left = min(LINES_BURST, self._left + (now - self._at) * LINES_PER_SECOND)
            self._at = now
            if self._left < cost:
                self.refused += 1
                return False
        self._left -= cost
        return True

    def renew(self) -> int:
        """For the next job; how much was refused to this one."""
        refused, self.refused = self.refused, 0
        self._left = LINES_BURST
        return refused


class Output:
    """The two pipes of one worker. `speakers` is its queue: the first speaks, or another where several were sent."""

    def __init__(self, supervisor: Supervisor, stdout_fd: int, stderr_fd: int, speakers: deque[Assignment]) -> None:
        self.allowance = Allowance()
        self._supervisor = supervisor
        self._speakers = speakers
        self._held: deque[tuple[float, _Pipe, bytes]] = deque()
        self._tail = bytearray()
        self._spoke = False
        self._pipes = [_Pipe(self, "stdout", stdout_fd), _Pipe(self, "stderr", stderr_fd)]
        for pipe in self._pipes:
            supervisor.watch(pipe.fd, pipe.on_readable)

    def drain(self) -> None:
        """Read what is there now: it is the first speaker's."""
        for pipe in self._pipes:
            # More than a pipe holds, yet not without end: what still runs may write as fast as this reads.
            for _ in range(4):
                if not pipe.read():
                    break
        self._release(time.monotonic())

    def finish(self, ended: float) -> None:
        """The first speaker ended at `ended`, and leaves: tell its last line, and what was left out."""
        if self._held:
            self._release(ended)
        if not self._spoke and not self.allowance.refused:
            return
        for pipe in self._pipes:
            pipe.end_line()
        self._tail.clear()
        self._spoke = False
        refused = self.allowance.renew()
        if refused:
            self._supervisor.said(self._speaker(), "log", _left_out(refused))

    def _speaker(self) -> Assignment | None:
        return self._speakers[0] if self._speakers else None

    def _release(self, until: float) -> None:
        while self._held and self._held[0][0] <= until:
            _, pipe, chunk = self._held.popleft()
            self._take(pipe, chunk)

    def _take(self, pipe: _Pipe, chunk: bytes) -> None:
        self._spoke = True
        self._tail += chunk
        del self._tail[:-TAIL]
        pipe.split(chunk)

    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def took(self, pipe: _Pipe, chunk: bytes, at: float) -> None:
        """`chunk` was read from `pipe` at `at`, or a little later."""
        if len(self._speakers) > 1:
            self._held.append((at, pipe, chunk))
        else:
            self._release(at)
            self._take(pipe, chunk)

    def tell(self, stream: str, line: bytes) -> None:
        if self.allowance.grant(len(line)):
            text = line.decode(errors="replace")
            self._supervisor.said(self._speaker(), "output", (stream, text))

    def over(self, fd: int) -> None:
        self._supervisor.unwatch(fd)
        os.close(fd)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    def __init__(self, output: Output, stream: str, fd: int) -> None:
        self.fd = fd
        self._output = output
        self._stream = stream
        self._partial = b""

    def on_readable(self) -> None:
        self.read()

    def read(self) -> bool:
        """Take what one read gives; False where there was nothing."""
        if self.fd < 0:
            return False
        at = time.monotonic()
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            return False
        self._output.took(self, chunk, at)
        return True

    def split(self, chunk: bytes) -> None:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._output.tell(self._stream, line.removesuffix(b"\r"))
        if len(self._partial) > _LONGEST_LINE:
            self.end_line()

    def end_line(self) -> None:
        if self._partial:
            partial, self._partial = self._partial, b""
            self._output.tell(self._stream, partial)

    def close(self) -> None:
        if self.fd >= 0:
            self.end_line()
            fd, self.fd = self.fd, -1
            self._output.over(fd)


def _left_out(count: int) -> dict[str, Any]:
    return {
        "name": "executor_adapter.job",
        "level": logging.WARNING,
        "message": f"{count} lines of output and log were left out: more than {LINES_PER_SECOND:.0f} a second",
        "created": time.time(),
        "exc_text": None,
    }
