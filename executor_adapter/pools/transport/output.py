"""What a worker's functions write to stdout and stderr, line by line, and how much of it is told.

A job may say LINES_BURST lines at once and LINES_PER_SECOND on; what is more is left out, counted, and the count told
when the job ends. Log records count as lines, long lines as several. Progress, checkpoints and events are never left
out. A writer is never held up for long: the pipes are always read.

**Whose it is.** A function that wrote what is not read yet says so with its result (OUTPUT), and its worker waits until
it is told that all is read (HEARD): it is all that function's. So a worker that has calls lying ready, and may be
further than the results that have arrived, is not read from at once, but on such a result, or after MUTED seconds. What
is read then is held until the next result, whose times tell: it is of the first function that ended after it was read.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import Any

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer

LINES_BURST = 10_000.0
LINES_PER_SECOND = 2_000.0
TAIL = 8192
"""Bytes of the end of a job's output that are kept for the error, should its worker die."""

MUTED = 0.05

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

    def __init__(self, supervisor: PoolSupervisor, stdout_fd: int, stderr_fd: int, speakers: deque[Assignment]) -> None:
        self.allowance = Allowance()
        self._supervisor = supervisor
        self._speakers = speakers
        self._held: deque[tuple[float, _Pipe, bytes]] = deque()
        self._tail = bytearray()
        self._spoke = False
        self._pipes = [_Pipe(self, supervisor, "stdout", stdout_fd), _Pipe(self, supervisor, "stderr", stderr_fd)]
        for pipe in self._pipes:
            pipe.listen()

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
            self._supervisor.on_message(self._speaker(), "log", _left_out(refused))

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
        """`chunk` was read from `pipe` at `at`."""
        if self.may_be_further:
            self._held.append((at, pipe, chunk))
        else:
            self._release(at)
            self._take(pipe, chunk)

    def tell(self, stream: str, line: bytes) -> None:
        if self.allowance.grant(len(line)):
            text = line.decode(errors="replace")
            self._supervisor.on_message(self._speaker(), "output", (stream, text))

    @property
    def may_be_further(self) -> bool:
        """Whether the worker may run another call than the first in its queue."""
        return len(self._speakers) > 1

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()


class _Pipe:
    def __init__(self, output: Output, supervisor: PoolSupervisor, stream: str, fd: int) -> None:
        self.fd = fd
        self._output = output
        self._supervisor = supervisor
        self._muted: Timer | None = None
        self._stream = stream
        self._partial = b""

    def listen(self) -> None:
        self._supervisor.watch(self.fd, self._on_readable)

    def _on_readable(self) -> None:
        if self._output.may_be_further:
            self._supervisor.unwatch(self.fd)
            self._muted = self._supervisor.call_at(self._supervisor.now() + MUTED, self._unmute)
        else:
            self.read()

    def _unmute(self) -> None:
        self._muted = None
        if self.fd >= 0:
            self.listen()
            self.read()

    def read(self) -> bool:
        """Take what one read gives; False where there was nothing."""
        if self.fd < 0:
            return False
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self.close()
            return False
        self._output.took(self, chunk, time.monotonic())
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
            if self._muted is not None:
                self._muted.cancel()
            else:
                self._supervisor.unwatch(self.fd)
            os.close(self.fd)
            self.fd = -1


def _left_out(count: int) -> dict[str, Any]:
    return {
        "name": "executor_adapter.job",
        "level": logging.WARNING,
        "message": f"{count} lines of output and log were left out: more than {LINES_PER_SECOND:.0f} a second",
        "created": time.time(),
        "exc_text": None,
    }
