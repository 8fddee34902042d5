"""What a running function says to its host: log records, progress, checkpoints, events.

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

from executor_adapter.worker import values, wire

CHANNEL_LOST = 71
"""Exit code of a worker whose socket the function closed: it cannot tell what came of it."""

PROGRESS_EVERY = 0.05
"""Seconds between two reports of progress; of those in between only the last is sent, when the function ends."""

_PLAIN = (str, int, float, bool, type(None))
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Channel:
    """The worker's end of its socket: frames leave it whole, from any thread and through any signal."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._inode = os.fstat(sock.fileno()).st_ino
        self._lock = threading.RLock()
        self._writing = False
        self._deferred: Callable[[], None] | None = None
        self._main = threading.get_ident()
        self.abandoned = False

    def send(self, frame: bytes, fd: int | None = None) -> None:
        if self.abandoned:
            return
        with self._lock:
            self._writing = threading.get_ident() == self._main
            try:
                # A function may have closed the socket, and opened a file of its own under the same number.
                if os.fstat(self._socket.fileno()).st_ino != self._inode:
                    os._exit(CHANNEL_LOST)
                wire.send_all(self._socket, frame, fd)
            except OSError:
                os._exit(CHANNEL_LOST)
            finally:
                self._writing = False
        if self._deferred is not None and threading.get_ident() == self._main:
            deferred, self._deferred = self._deferred, None
            deferred()

    def when_free(self, action: Callable[[], None]) -> None:
        """For a signal's handler: act at once, or once the frame that the main thread is writing is whole."""
        if self._writing:
            self._deferred = action
        else:
            action()

    def abandon(self) -> None:
        """In a forked process: the socket is the parent's alone."""
        if not self.abandoned:
            self.abandoned = True
            self._socket.close()


class Voice:
    """Sends what is said, under the number of the call that runs (0: none)."""

    def __init__(self, channel: Channel, level: int) -> None:
        self.seq = 0
        self._channel = channel
        self._progress: tuple[Any, ...] | None = None
        self._progress_at = 0.0
        root = logging.getLogger()
        root.addHandler(_Handler(self))
        root.setLevel(level)

    def emit(self, topic: str, content: Any) -> None:
        """The `emit` of a JobContext.

        Raises:
            Exception: the content of an event cannot be pickled, or loaded again.
        """
        if topic == "progress":
            self._emit_progress(content)
            return
        self._send(topic, content, wire.LOUD)

    def log(self, message: str, level: int = logging.WARNING) -> None:
        """A record of our own in the job's log."""
        logging.getLogger("executor_adapter.job").log(level, message)

    def finish(self) -> None:
        """The function is over: send what was held back."""
        if self._progress is not None:
            self._send("progress", self._progress, wire.LOUD)
            self._progress = None
        self._progress_at = 0.0
        self.seq = 0

    def _emit_progress(self, content: tuple[Any, Any, str]) -> None:
        done, total, message = content
        self._progress = (_number(done), None if total is None else _number(total), str(message))
        now = time.monotonic()
        if now - self._progress_at >= PROGRESS_EVERY:
            self._progress_at = now
            progress, self._progress = self._progress, None
            self._send("progress", progress, wire.LOUD)

    def _send(self, topic: str, content: Any, flags: int) -> None:
        body = values.checked_dumps((topic, content))
        self._channel.send(wire.HEADER.pack(len(body), wire.SAID, flags, 0, self.seq, 0, 0.0, 0.0) + body)

    def send_record(self, fields: dict[str, Any]) -> None:
        body = pickle.dumps(("log", fields), 5)
        self._channel.send(wire.HEADER.pack(len(body), wire.SAID, 0, 0, self.seq, 0, 0.0, 0.0) + body)

    @property
    def silent(self) -> bool:
        return self._channel.abandoned


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else float(value)


class _Handler(logging.Handler):
    """Sends each record as a dict of plain values; in a forked process, writes it to stderr."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._voice.silent:
                os.write(2, (record.getMessage() + "\n").encode())
            else:
                self._voice.send_record(self._fields(record))
        except Exception:
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        exc_text = self._formatter.formatException(record.exc_info) if record.exc_info else record.exc_text
        extra = {
            name: value if isinstance(value, _PLAIN) else repr(value)
            for name, value in vars(record).items()
            if name not in _STANDARD_FIELDS
        }
        return extra | {
            "name": record.name,
            "level": record.levelno,
            "message": record.getMessage(),
            "created": record.created,
            "exc_text": exc_text,
        }
