"""Sends what a running function reports to its host: log records, progress, checkpoints, events.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from executor_adapter.worker import wire

EXIT_SOCKET_LOST = 71
"""Exit code of a worker whose socket the function closed, so that it cannot report the outcome."""

PROGRESS_INTERVAL = 0.05
"""Seconds between two reports of progress. Of the reports in between only the last is sent, when the function ends."""

MAX_TEXT = 64 * 1024
"""Characters that are kept of each text in a log record or a report of progress; the host holds it in memory."""

_PLAIN = (int, float, bool, type(None))
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _identity(sock: socket.socket) -> tuple[int, int]:
    """Return what distinguishes a socket from any other file that may get its descriptor."""
    status = os.fstat(sock.fileno())
    return status.st_dev, status.st_ino


class Channel:
    """The worker's end of its socket: sends each frame whole, from any thread and whatever signals arrive."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._identity = _identity(sock)
        self._lock = threading.RLock()
        self._writing = False
        self._deferred: Callable[[], None] | None = None
        self._main = threading.get_ident()
        self.is_detached = False

    def send(self, frame: bytes, fd: int | None = None) -> None:
        """Send a frame; exit with EXIT_SOCKET_LOST if the function closed the socket."""
        if self.is_detached:
            return
        with self._lock:
            self._writing = threading.get_ident() == self._main
            try:
                # A function may have closed the socket, and opened a file of its own under the same number.
                if _identity(self._socket) != self._identity:
                    os._exit(EXIT_SOCKET_LOST)
                sent = 0 if fd is None else wire.send_fds(self._socket, frame, [fd])
                if sent < len(frame):
                    self._socket.sendall(memoryview(frame)[sent:], wire.NO_SIGNAL)
            except OSError:
                os._exit(EXIT_SOCKET_LOST)
            finally:
                self._writing = False
        if self._deferred is not None and threading.get_ident() == self._main:
            deferred, self._deferred = self._deferred, None
            deferred()

    def run_between_frames(self, action: Callable[[], None]) -> None:
        """Call `action` at once, or when the main thread has finished the frame it is writing; for signal handlers."""
        if self._writing:
            self._deferred = action
        else:
            action()

    def detach(self) -> None:
        """Close this copy of the socket, in a forked process: the socket belongs to the parent."""
        if not self.is_detached:
            self.is_detached = True
            self._socket.close()


class WorkerReporter:
    """Sends log records and messages to the host, with the number of the running call in `seq` (0: none)."""

    def __init__(self, channel: Channel, level: int) -> None:
        self.seq = 0
        self._channel = channel
        self._progress: tuple[Any, ...] | None = None
        self._progress_at = 0.0
        root = logging.getLogger()
        root.addHandler(_Handler(self))
        root.setLevel(level)

    def emit(self, topic: str, content: Any) -> None:
        """Act as the `emit` of a JobContext."""
        if topic == "progress":
            self._emit_progress(content)
            return
        self.send(topic, content)

    def log(self, message: str, level: int = logging.WARNING) -> None:
        """Add a record of this package to the job's log."""
        logging.getLogger("executor_adapter.job").log(level, message)

    def finish(self) -> None:
        """Send the progress report that was held back, once the function has ended."""
        if self._progress is not None:
            self.send("progress", self._progress)
            self._progress = None
        self._progress_at = 0.0
        self.seq = 0

    def _emit_progress(self, content: tuple[Any, Any, str]) -> None:
        done, total, message = content
        self._progress = (_number(done), None if total is None else _number(total), _cut(str(message)))
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_INTERVAL:
            self._progress_at = now
            progress, self._progress = self._progress, None
            self.send("progress", progress)

    def send(self, topic: str, content: Any, flags: int = wire.UNTHROTTLED) -> None:
        """Send a message. Without UNTHROTTLED in `flags` the host may leave it out, if the job logs too much."""
        body = pickle.dumps((topic, content), 5)
        self._channel.send(wire.pack_frame(wire.MESSAGE, flags, seq=self.seq, body=body))

    @property
    def is_detached(self) -> bool:
        """Whether this is a process that the function forked, which sends nothing to the host."""
        return self._channel.is_detached


def _cut(text: str) -> str:
    """Return the text, or its beginning and how much was left out, as a plain str."""
    text = str.__str__(text)
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]} ... ({left_out:,} characters left out)"


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else float(value)


class _Handler(logging.Handler):
    """Sends each log record as a dict of plain values; in a forked process, writes its message to stderr."""

    def __init__(self, reporter: WorkerReporter) -> None:
        super().__init__()
        self._reporter = reporter
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._reporter.is_detached:
                os.write(2, (record.getMessage() + "\n").encode())
            else:
                self._reporter.send("log", self._fields(record), flags=0)
        except Exception:
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        exc_text = self._formatter.formatException(record.exc_info) if record.exc_info else record.exc_text
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
        return {str.__str__(name): _plain(value) for name, value in extra.items()} | {
            "name": _cut(record.name),
            "level": int.__int__(record.levelno),
            "message": _cut(record.getMessage()),
            "created": float(record.created),
            "pathname": _plain(record.pathname),
            "lineno": _plain(record.lineno),
            "funcName": _plain(record.funcName),
            "exc_text": _plain(exc_text),
        }


def _plain(value: Any) -> Any:
    """Return a value that the host can read without the modules of the function."""
    if isinstance(value, str):
        return _cut(value)
    return value if type(value) in _PLAIN else _cut(repr(value))
