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
from typing import Any, TextIO

from executor_adapter.worker import wire

_MIN_MEASURED = 30e-6
"""Seconds of a call within which no system gives a process a further MiB, page by page, so nothing is measured."""
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "line_buffering": True}
"""How stdout and stderr are written."""
_MIN_FD = 512
"""The worker's own descriptors are moved to this number or above, since functions often close all low ones."""


def move_up(fd: int) -> int:
    """Move a descriptor to _MIN_FD or above, if the limit of open files allows it."""
    with contextlib.suppress(OSError):
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _MIN_FD)
        os.close(fd)
        return high
    return fd


class Stdio:
    """Connects stdout and stderr to the pipes that the host reads, stdin to /dev/null, and Python's streams to them."""

    def __init__(self, stdout_fd: int, stderr_fd: int, input_fd: int) -> None:
        self.stderr_fd = stderr_fd
        self._stdout_fd = stdout_fd
        self._input_fd = input_fd
        self._waiting = bytearray(4)
        self._stdin: TextIO | None = sys.stdin
        self._reopen()

    def _reopen(self) -> None:
        """Connect all three descriptors, and make new streams for them."""
        self._connect()
        if self._stdin is not None and self._stdin.closed:
            self._stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
        self._stdout = _open_stream(1)
        self._stderr = _open_stream(2)
        self._install_streams()

    def _connect(self) -> None:
        os.dup2(self._input_fd, 0)
        os.dup2(self._stdout_fd, 1)
        os.dup2(self.stderr_fd, 2)

    def _install_streams(self) -> None:
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[misc, assignment]
        sys.stdout = sys.__stdout__ = self._stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc]

    def flush(self) -> int:
        """Flush, and use Python's streams again. Return HAS_OUTPUT if the host has output to read."""
        stdout, stderr = self._stdout, self._stderr
        if sys.stdout is not stdout or sys.stderr is not stderr or sys.stdin is not self._stdin:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            self._install_streams()
        try:
            stdout.flush()
            stderr.flush()
            if self._stdin is not None and self._stdin.closed:
                self._reopen()
            return wire.HAS_OUTPUT if self._has_unread() else 0
        except (OSError, ValueError):  # The function closed a stream, or its own file behind it is full.
            self._repair()
            return wire.HAS_OUTPUT

    def restore(self) -> None:
        """Undo what functions did to the descriptors and the streams.

        Raises:
            OSError: a function has closed the worker's own descriptors.
        """
        for fd in (self._stdout_fd, self.stderr_fd):
            os.set_blocking(fd, True)
        self._connect()
        for stream in (self._stdout, self._stderr):
            if not stream.closed:
                stream.reconfigure(**_TEXT, newline=None, write_through=False)

    def _has_unread(self) -> bool:
        """Return whether the host has not read all that is in the pipes."""
        for fd in (self._stdout_fd, self.stderr_fd):
            fcntl.ioctl(fd, termios.FIONREAD, self._waiting, True)
            if any(self._waiting):
                return True
        return False

    def _repair(self) -> None:
        for stream in (self._stdout, self._stderr):
            # Detached, so that what is left in the old buffer is not flushed into the new stream.
            with contextlib.suppress(Exception):
                stream.detach().detach()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # The function closed our copies too, so the next send fails as well.
            self._reopen()


def _open_stream(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), **_TEXT)


class PeakMemory:
    """Measures the worker's peak resident memory for each attempt."""

    def __init__(self) -> None:
        self._baseline = 0
        self._baseline = self._read()

    def _read(self) -> int:
        # macOS counts bytes, others KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform == "darwin" else 0)
        if sys.platform == "linux" and peak > self._baseline + 1024:
            # Linux counts there what the program that has started this one held too, and clear_refs does not reset it.
            with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
                return int(file.read().partition(b"VmHWM:")[2].split(None, 1)[0])
        return peak

    def take(self, seconds: float) -> int:
        """Return the peak in KiB since the last call, and start a new measurement. `seconds`: the time between."""
        if seconds < _MIN_MEASURED:
            return self._baseline
        if (peak := self._read()) > self._baseline + 1024:
            # proc_pid_clear_refs(5): writing "5" resets the peak to the current value.
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._baseline = self._read()
        return peak
