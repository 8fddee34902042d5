"""A stream of frames between a head and an agent. It never blocks.

Large values are sent as chunks between the frames, and several of them in turn, so that a STOP never waits for more
than one chunk.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster import frames
from executor_adapter.worker import values, wire

CHUNK_BYTES = 1 << 20
"""Bytes of a large value that are sent at once."""

_BUFFER_BYTES = 1 << 19


class LinkEnd(Protocol):
    """The descriptors of one end of a stream, which do not block."""

    read_fd: int
    write_fd: int

    def receive(self, buffer: bytearray) -> int:
        """Read into the buffer and return the number of bytes; 0 at the end of the stream."""

    def send(self, data: memoryview) -> int:
        """Write what there is room for, and return its number of bytes."""

    def close(self) -> None:
        """Close the descriptors."""


class SocketEnd:
    """One end of a link over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.read_fd = self.write_fd = sock.fileno()

    def receive(self, buffer: bytearray) -> int:
        return self._socket.recv_into(buffer)

    def send(self, data: memoryview) -> int:
        return self._socket.send(data, wire.NO_SIGNAL)

    def close(self) -> None:
        self._socket.close()


class PipeEnd:
    """One end of a link over two descriptors, such as stdin and stdout."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def receive(self, buffer: bytearray) -> int:
        return os.readv(self.read_fd, [buffer])

    def send(self, data: memoryview) -> int:
        return os.write(self.write_fd, data)

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


def take_stdio() -> tuple[int, int]:
    """Return copies of stdin and stdout for frames; what anything here prints goes to stderr from now on."""
    taken = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return taken


class _Sending:
    """A large value that is being sent. `owner` keeps its file open; without one it is closed after the last chunk."""

    __slots__ = ("at", "fd", "owner", "seq", "size", "then")

    def __init__(self, seq: int, fd: int, owner: values.MemoryFile | None, then: bytes) -> None:
        self.seq = seq
        self.fd = fd
        self.owner = owner
        self.then = then
        self.at = 0
        self.size = os.fstat(fd).st_size

    def close(self) -> None:
        if self.owner is None:
            os.close(self.fd)


class Link:
    """Sends and receives frames. `on_lost` is called once when the stream ends, but not after `close`."""

    def __init__(
        self,
        loop: PoolSupervisor,
        end: LinkEnd,
        on_frames: Callable[[list[wire.Frame]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.is_open = True
        self.heard_at = loop.now()
        """The monotonic time at which anything was received last."""
        self.bytes_sent = self.bytes_received = 0
        self._loop = loop
        self._end = end
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._unsent: list[bytes] = []
        self._rest = memoryview(b"")
        self._files: deque[_Sending] = deque()
        self._splitter = wire.FrameSplitter(bytearray(_BUFFER_BYTES))
        self._waits_for_room = False
        loop.watch(end.read_fd, self._read)

    @property
    def has_unsent_frames(self) -> bool:
        """Whether a frame is not in the kernel's buffer yet."""
        return bool(self._unsent) or bool(self._rest)

    @property
    def sends_files(self) -> bool:
        """Whether a large value is not sent completely yet."""
        return bool(self._files)

    def send(self, frame: bytes) -> None:
        """Send a frame at the next `flush`."""
        if self.is_open:
            self._unsent.append(frame)

    def send_file(self, seq: int, fd: int, then: bytes, owner: values.MemoryFile | None = None) -> None:
        """Send a memory file in chunks, and after the last one the frame `then`."""
        sending = _Sending(seq, fd, owner, then)
        if self.is_open:
            self._files.append(sending)
        else:
            sending.close()

    def cancel_file(self, seq: int) -> bool:
        """Do not send the rest of a memory file and its frame. Return False if that is sent already."""
        for sending in self._files:
            if sending.seq == seq:
                self._files.remove(sending)
                sending.close()
                self.send(wire.pack_frame(frames.DROP_FILE, seq=seq))
                return True
        return False

    def flush(self) -> None:
        """Send what there is room for, and the rest as soon as there is more."""
        while self.is_open and (self._rest or self._unsent or self._files):
            if not self._rest:
                if not self._unsent:
                    self._add_chunk()
                self._rest = memoryview(b"".join(self._unsent))
                self._unsent.clear()
            try:
                sent = self._end.send(self._rest)
            except BlockingIOError:
                self._wait_for_room()
                return
            except OSError:
                self._lose()
                return
            self.bytes_sent += sent
            self._rest = self._rest[sent:]
        self._stop_waiting()

    def _add_chunk(self) -> None:
        sending = self._files.popleft()
        chunk = os.pread(sending.fd, CHUNK_BYTES, sending.at)
        sending.at += len(chunk)
        self._unsent.append(wire.pack_frame(frames.FILE, seq=sending.seq, body=chunk))
        if chunk and sending.at < sending.size:
            self._files.append(sending)  # Behind the others, so that all of them advance.
        else:
            self._unsent.append(sending.then)
            sending.close()

    def _wait_for_room(self) -> None:
        if self._waits_for_room:
            return
        self._waits_for_room = True
        fd = self._end.write_fd
        if fd != self._end.read_fd:
            self._loop.watch(fd, self.flush)
        self._loop.watch_writable(fd, self.flush)

    def _stop_waiting(self) -> None:
        if self._waits_for_room and self.is_open:
            self._waits_for_room = False
            if self._end.write_fd != self._end.read_fd:
                self._loop.unwatch(self._end.write_fd)
            else:
                self._loop.watch_writable(self._end.write_fd, None)

    def _read(self) -> None:
        try:
            count = self._end.receive(self._splitter.buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose()
            return
        self.heard_at = self._loop.now()
        self.bytes_received += count
        if arrived := self._splitter.split(count):
            self._on_frames(arrived)

    def _lose(self) -> None:
        if self.is_open:
            self.close()
            self._on_lost()

    def close(self) -> None:
        """Close the stream; what is not sent yet is dropped."""
        if not self.is_open:
            return
        self.is_open = False
        for fd in {self._end.read_fd, self._end.write_fd}:
            self._loop.unwatch(fd)
        self._end.close()
        for sending in self._files:
            sending.close()
        self._files.clear()
        self._unsent.clear()


class ArrivingFiles:
    """Collects the chunks of large values, each in a memory file of its own."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def add(self, seq: int, chunk: bytes) -> None:
        """Append a chunk to the file of `seq`. A file for which this machine has no room is lost."""
        fd = self._fds.get(seq)
        try:
            if fd is None:
                fd = self._fds[seq] = os.memfd_create("executor-adapter", os.MFD_CLOEXEC)
            if fd >= 0:
                _write_all(fd, chunk)
        except OSError:
            self.drop(seq)
            self._fds[seq] = -1

    def take(self, seq: int) -> int:
        """Return the descriptor of a complete file, at its beginning; -1 if it was lost."""
        fd = self._fds.pop(seq, -1)
        if fd >= 0:
            os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def drop(self, seq: int) -> None:
        """Close a file that is not needed."""
        fd = self._fds.pop(seq, -1)
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def close(self) -> None:
        """Close all files."""
        for seq in list(self._fds):
            self.drop(seq)


def _write_all(fd: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]
