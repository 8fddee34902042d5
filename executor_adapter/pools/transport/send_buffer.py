"""Sends frames to one worker through a socket that may be full: functions once, sys.path when it has changed."""

from __future__ import annotations

import pickle
import socket
import sys
from collections import deque

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import values, wire

MAX_FUNCTIONS = 512
"""Functions that a worker keeps. When it has so many, it forgets all, and is sent again what it needs."""


class SharedPath:
    """The sys.path and the key of multiprocessing's managers that workers should have, and how often they changed."""

    def __init__(self) -> None:
        self.version = 0
        self.frame = b""
        self._seen = list(sys.path)
        self._seen_key: bytes | None = None

    def refresh(self) -> None:
        """Note whether sys.path has changed, or managers are used since."""
        key = _managers_key()
        if sys.path != self._seen or key != self._seen_key:
            self._seen, self._seen_key = list(sys.path), key
            self.version += 1
            body = pickle.dumps((current_path(), key), 5)
            self.frame = wire.pack_frame(wire.PATH, body=body)


def _managers_key() -> bytes | None:
    """Return the key by which the managers of this process know their clients; None while it uses no managers."""
    if "multiprocessing.managers" not in sys.modules:
        return None
    return bytes(sys.modules["multiprocessing.process"].current_process().authkey)


class SendBuffer:
    """The sending side of a worker's socket. It never blocks: frames for which there is no room are sent later."""

    def __init__(self, supervisor: PoolSupervisor, sock: socket.socket) -> None:
        self._supervisor = supervisor
        self._socket = sock
        self._fd = sock.fileno()
        self.known: set[int] = set()
        """The numbers of the functions that the worker knows."""
        self._path_version = 0
        self._unsent: deque[tuple[memoryview, values.MemoryFile | None]] = deque()

    def path_frame(self, path: SharedPath) -> bytes:
        """Return the frame that updates the worker's sys.path; empty if it is up to date."""
        path.refresh()
        if self._path_version == path.version:
            return b""
        self._path_version = path.version
        return path.frame

    def function_frame(self, function: EncodedFunction, *, may_forget: bool) -> bytes:
        """Return the frame that must precede a call of `function`, which the worker does not know.

        `may_forget`: no call that was sent before refers to a function the worker knows.
        """
        flags = 0
        if may_forget and len(self.known) >= MAX_FUNCTIONS:
            self.known.clear()
            flags = wire.FORGET_OTHERS
        if not function.once:
            self.known.add(function.number)
        return wire.pack_frame(wire.FUNCTION, flags, word=function.number, body=function.encoded)

    def send(self, frames: bytes, file: values.MemoryFile | None = None) -> None:
        """Send frames now or as soon as there is room, with a memory file for the receiver if one is given."""
        if not self._unsent and file is None:
            try:
                sent = self._socket.send(frames, wire.NO_SIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:  # The worker has died, which the pool notices by other means.
                return
            if sent == len(frames):
                return
            self._unsent.append((memoryview(frames)[sent:], None))
        else:
            self._unsent.append((memoryview(frames), file))
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent:
            frames, file = self._unsent[0]
            try:
                sent = wire.send_fds(self._socket, frames, () if file is None else (file.fd,))
            except BlockingIOError:
                self._supervisor.watch_writable(self._fd, self._send_unsent)
                return
            except OSError:
                self._unsent.clear()
                return
            if sent < len(frames):
                self._unsent[0] = (frames[sent:], None)
            else:
                self._unsent.popleft()
        self._supervisor.watch_writable(self._fd, None)

    def discard(self) -> None:
        """Discard what is not sent yet, since the worker reads no more."""
        self._unsent.clear()
