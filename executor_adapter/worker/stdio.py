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

_IS_DARWIN = sys.platform == "darwin"
"""On macOS getrusage counts bytes, elsewhere KiB."""
_MIN_MEASURED = 30e-6
"""Seconds of a call within which no system gives a process a further MiB, page by page, so nothing is measured."""
_dup2, _set_blocking = os.dup2, os.set_blocking
"""The functions themselves, of which calls are not noted (see `watched`)."""
_MIN_FD = 512
"""The worker's own descriptors are moved to this number or above, since functions often close all low ones."""


def move_up(fd: int) -> int:
    """Move a descriptor to _MIN_FD or above, if the limit of open files allows it."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _MIN_FD)
    except OSError:
        return fd
    os.close(fd)
    return high


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
        self._stdout = _Stream(1)
        self._stderr = _Stream(2)
        self._install_streams()

    def _connect(self) -> None:
        _dup2(self._input_fd, 0)
        _dup2(self._stdout_fd, 1)
        _dup2(self.stderr_fd, 2)

    def _install_streams(self) -> None:
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[misc, assignment]
        sys.stdout = sys.__stdout__ = self._stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc]

    def restore(self, depth: int) -> int:
        """Flush, and undo what the function did to the streams. Return HAS_OUTPUT if the host has output to read.

        `depth`: see `process_state.Depth`.
        """
        stdout, stderr = self._stdout, self._stderr
        if sys.stdout is not stdout or sys.stderr is not stderr or sys.stdin is not self._stdin:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            self._install_streams()
        try:
            stdout.flush()
            stderr.flush()
            if depth > 1 or stdout.changed or stderr.changed:
                self._restore_rare()
            if depth > 0:
                self._connect()
            if self._stdin is not None and self._stdin.closed:
                self._reopen()
            return wire.HAS_OUTPUT if self._has_unread(self._stdout_fd) or self._has_unread(self.stderr_fd) else 0
        except (OSError, ValueError):  # The function closed a stream, or its own file behind it is full.
            self._repair()
            return wire.HAS_OUTPUT

    def _restore_rare(self) -> None:
        for stream in (self._stdout, self._stderr):
            if stream.changed:
                stream.set_up()
        for fd in (self._stdout_fd, self.stderr_fd):
            _set_blocking(fd, True)

    def _has_unread(self, fd: int) -> bool:
        fcntl.ioctl(fd, termios.FIONREAD, self._waiting, True)
        return any(self._waiting)

    def _repair(self) -> None:
        for stream in (self._stdout, self._stderr):
            # Detached, so that what is left in the old buffer is not flushed into the new stream.
            with contextlib.suppress(Exception):
                stream.detach().detach()  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):  # The function closed our copies too, so the next send fails as well.
            self._reopen()
            self._restore_rare()


class _Stream(io.TextIOWrapper):
    """A text stream that notes whether it was reconfigured."""

    def __init__(self, fd: int) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self.changed = False

    def reconfigure(self, **options: Any) -> None:
        self.changed = True
        super().reconfigure(**options)

    def set_up(self) -> None:
        """Undo all calls of `reconfigure`."""
        super().reconfigure(
            encoding="utf-8", errors="backslashreplace", newline=None, line_buffering=True, write_through=False
        )
        self.changed = False


class PeakMemory:
    """Measures the worker's peak resident memory for each attempt."""

    def __init__(self) -> None:
        self._baseline = self._read()

    @staticmethod
    def _read() -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak >> 10 if _IS_DARWIN else peak

    def take(self, seconds: float) -> int:
        """Return the peak in KiB since the last call, and start a new measurement. `seconds`: the time between."""
        if seconds < _MIN_MEASURED:
            return self._baseline
        peak = self._read()
        if peak > self._baseline + 1024:
            # proc_pid_clear_refs(5): writing "5" resets the peak to the current value.
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self._baseline = self._read()
        return peak
