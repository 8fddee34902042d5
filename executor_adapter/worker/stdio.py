"""A worker's stdin, stdout and stderr, which functions may close, replace or fill with anything.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import resource
import sys
import termios
from typing import TextIO

from executor_adapter.worker import wire

_IS_DARWIN = sys.platform == "darwin"
"""There getrusage counts bytes, elsewhere KiB."""


class Stdio:
    """File descriptors 1 and 2 on the pipes that the host reads, 0 on /dev/null, and Python's streams on them."""

    def __init__(self, stdout_fd: int, stderr_fd: int) -> None:
        self.stderr_fd = stderr_fd
        self._fds = {1: stdout_fd, 2: stderr_fd}
        self._waiting = bytearray(4)
        for number, fd in self._fds.items():
            os.dup2(fd, number)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._stdout = _stream(1)
        self._stderr = _stream(2)
        self._put_streams()

    def _put_streams(self) -> None:
        sys.stdout = sys.__stdout__ = self._stdout  # type: ignore[misc, assignment]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc, assignment]

    def settle(self) -> int:
        """After a function: flush, put back what it replaced; OUTPUT where it wrote what the host has not read."""
        if sys.stdout is not self._stdout or sys.stderr is not self._stderr:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            self._put_streams()
        try:
            self._stdout.flush()
            self._stderr.flush()
            return wire.OUTPUT if self._unread(1) or self._unread(2) else 0
        except (OSError, ValueError):  # closed
            self._repair()
            return wire.OUTPUT

    def _unread(self, fd: int) -> bool:
        fcntl.ioctl(fd, termios.FIONREAD, self._waiting, True)
        return any(self._waiting)

    def _repair(self) -> None:
        for stream in (self._stdout, self._stderr):
            # Its buffer may hold what could not be written: it must not flush that into what is repaired.
            with contextlib.suppress(Exception):
                stream.detach().detach()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # it closed all: then the socket too, as will be seen
            for number, fd in self._fds.items():
                os.dup2(fd, number)
            self._stdout = _stream(1)
            self._stderr = _stream(2)
            self._put_streams()


class Memory:
    """The worker's peak of resident memory, by attempt."""

    def __init__(self) -> None:
        self._floor = self._now()

    @staticmethod
    def _now() -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak >> 10 if _IS_DARWIN else peak

    def peak(self) -> int:
        """KiB at most held since the last call; counted anew from here on."""
        peak = self._now()
        if peak > self._floor + 1024:
            # proc_pid_clear_refs(5): "5" resets the peak to what is held now.
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._floor = self._now()
        return peak


def _stream(fd: int) -> TextIO:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
