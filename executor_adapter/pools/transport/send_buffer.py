"""What goes to one worker: frames through a socket that may be full, functions once, sys.path when it has changed."""

from __future__ import annotations

import array
import pickle
import socket
import sys
from collections import deque

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import wire
from executor_adapter.worker.values import MemoryFile

MOST_FUNCTIONS = 512
"""Functions that a worker is let keep; past it, it forgets all and is sent anew what it needs."""


class SharedPath:
    """sys.path as the workers know it, and how often it has changed."""

    def __init__(self) -> None:
        self.version = 0
        self.frame = b""
        self._seen = list(sys.path)

    def look(self) -> None:
        if sys.path != self._seen:
            self._seen = list(sys.path)
            self.version += 1
            body = pickle.dumps(current_path(), 5)
            self.frame = wire.frame(wire.PATH, body=body)


class Outbox:
    """The sending side of a worker's socket, which must not wait."""

    def __init__(self, supervisor: PoolSupervisor, sock: socket.socket) -> None:
        self._supervisor = supervisor
        self._socket = sock
        self._fd = sock.fileno()
        self._known: set[int] = set()
        self._path_version = 0
        self._waiting: deque[tuple[memoryview, MemoryFile | None]] = deque()

    def path(self, path: SharedPath) -> bytes:
        """The frame that brings the worker's sys.path up to date; empty where it is."""
        if self._path_version == path.version:
            return b""
        self._path_version = path.version
        return path.frame

    def introduce(self, function: EncodedFunction, *, may_forget: bool) -> bytes:
        """The frame that a call of `function` needs before it; empty where the worker knows it.

        `may_forget`: no call before this one refers to what it knows.
        """
        if function.number in self._known:
            return b""
        flags = 0
        if may_forget and len(self._known) >= MOST_FUNCTIONS:
            self._known.clear()
            flags = wire.FORGET
        if not function.once:
            self._known.add(function.number)
        return wire.frame(wire.FUNCTION, flags, word=function.number, body=function.encoded)

    def send(self, frames: bytes, file: MemoryFile | None = None) -> None:
        """Send now or as soon as there is room, with a memory file for the receiver."""
        if not self._waiting and file is None:
            try:
                sent = self._socket.send(frames)
            except BlockingIOError:
                sent = 0
            except OSError:  # it is dead, which is seen elsewhere
                return
            if sent == len(frames):
                return
            self._waiting.append((memoryview(frames)[sent:], None))
        else:
            self._waiting.append((memoryview(frames), file))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            frames, file = self._waiting[0]
            rights = [] if file is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fd]))]
            try:
                sent = self._socket.sendmsg([frames], rights)
            except BlockingIOError:
                self._supervisor.watch_writable(self._fd, self._send_waiting)
                return
            except OSError:
                self._waiting.clear()
                return
            if sent < len(frames):
                self._waiting[0] = (frames[sent:], None)
            else:
                self._waiting.popleft()
        self._supervisor.watch_writable(self._fd, None)

    def discard(self) -> None:
        """The worker reads no more."""
        self._waiting.clear()
