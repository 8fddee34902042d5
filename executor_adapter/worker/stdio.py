"""Keeps a worker's stdin, stdout and stderr usable, though functions may close or replace them or write anything.

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
"""On macOS getrusage counts bytes, elsewhere KiB."""


class Stdio:
    """Connects stdout and stderr to the pipes that the host reads, stdin to /dev/null, and Python's streams to them."""

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
        self._install_streams()

    def _install_streams(self) -> None:
        sys.stdout = sys.__stdout__ = self._stdout  # type: ignore[misc, assignment]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc, assignment]

    def restore(self) -> int:
        """Flush, and undo what the function did to the streams. Return HAS_OUTPUT if the host has output to read."""
        if sys.stdout is not self._stdout or sys.stderr is not self._stderr:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            self._install_streams()
        try:
            self._stdout.flush()
            self._stderr.flush()
            return wire.HAS_OUTPUT if self._has_unread(1) or self._has_unread(2) else 0
        except (OSError, ValueError):  # The function closed a stream.
            self._repair()
            return wire.HAS_OUTPUT

    def _has_unread(self, fd: int) -> bool:
        fcntl.ioctl(fd, termios.FIONREAD, self._waiting, True)
        return any(self._waiting)

    def _repair(self) -> None:
        for stream in (self._stdout, self._stderr):
            # Detached, so that what is left in the old buffer is not flushed into the new stream.
            with contextlib.suppress(Exception):
                stream.detach().detach()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # The function closed our copies too, so the next send fails as well.
            for number, fd in self._fds.items():
                os.dup2(fd, number)
            self._stdout = _stream(1)
            self._stderr = _stream(2)
            self._install_streams()


class PeakMemory:
    """Measures the worker's peak resident memory for each attempt."""

    def __init__(self) -> None:
        self._baseline = self._read()

    @staticmethod
    def _read() -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak >> 10 if _IS_DARWIN else peak

    def take(self) -> int:
        """Return the peak in KiB since the last call, and start a new measurement."""
        peak = self._read()
        if peak > self._baseline + 1024:
            # proc_pid_clear_refs(5): writing "5" resets the peak to the current value.
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._baseline = self._read()
        return peak


def _stream(fd: int) -> TextIO:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
