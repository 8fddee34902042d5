"""Sends to another process through a socket that may be full; and the sys.path that workers are sent."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
from collections import deque

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import wire


class SharedPath:
    """The sys.path and the key of multiprocessing's managers that workers should have, and how often they changed."""

    def __init__(self) -> None:
        self.version = 0
        self.frame = b""
        self._seen = _looked_at(None)

    def refresh(self) -> None:
        """Note whether sys.path has changed, or managers are used since."""
        key = _managers_key()
        if (seen := _looked_at(key)) != self._seen:
            self._seen = seen
            self.version += 1
            body = pickle.dumps((current_path(), key), 5)
            self.frame = wire.pack_frame(wire.PATH, body=body)


def _looked_at(key: bytes | None) -> list[object]:
    directory = None
    with contextlib.suppress(OSError):  # It is gone. Its name is had without the disk, which may be stale.
        directory = os.getcwd() if "" in sys.path else None
    return [*sys.path, key, directory]


def _managers_key() -> bytes | None:
    """Return the key by which the managers of this process know their clients; None while it uses no managers."""
    if "multiprocessing.managers" not in sys.modules:
        return None
    return bytes(sys.modules["multiprocessing.process"].current_process().authkey)


class SendBuffer:
    """The sending side of a socket. It never blocks: what there is no room for is sent later.

    Descriptors may go with what is sent. Their `holder` is kept until they are sent, or what is left is discarded.
    """

    def __init__(self, supervisor: PoolSupervisor, sock: socket.socket) -> None:
        self._supervisor = supervisor
        self._socket = sock
        self._fd = sock.fileno()
        self._unsent: deque[tuple[memoryview, tuple[int, ...], object]] = deque()

    def send(self, content: bytes, fds: tuple[int, ...] = (), holder: object = None) -> None:
        """Send this now or as soon as there is room."""
        if not self._unsent and not fds:
            try:
                sent = self._socket.send(content, wire.NO_SIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:  # The receiver has died, which the pool notices by other means.
                return
            if sent == len(content):
                return
            self._unsent.append((memoryview(content)[sent:], (), None))
        else:
            self._unsent.append((memoryview(content), fds, holder))
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent:
            content, fds, _ = self._unsent[0]
            try:
                sent = wire.send_fds(self._socket, content, fds)
            except BlockingIOError:
                self._supervisor.watch_writable(self._fd, self._send_unsent)
                return
            except OSError:
                self._unsent.clear()
                return
            if sent < len(content):
                self._unsent[0] = (content[sent:], (), None)
            else:
                self._unsent.popleft()
        self._supervisor.watch_writable(self._fd, None)

    def discard(self) -> None:
        """Discard what is not sent yet, since the receiver reads no more."""
        self._unsent.clear()
