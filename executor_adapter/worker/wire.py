"""What travels between a host and its workers: frames on one stream socket, and what is large beside it (`values`).

A frame is a header of fixed size and a body. Host and worker write frames whole and read whatever has arrived, so a
frame that its writer did not live to finish is seen as the end of the stream, and nothing of it is ever used.

    host -> worker
        FUNCTION    word: its number; body: the function, encoded      what later calls refer to
        CALL        seq, number of the attempt, word: the function's number, first: max_runtime or 0
                    body: CALL_SIZES, job id, what describes the job, arguments, what is of this attempt
        DROP        seq: forget every call from it on, and say DROPPED
        PATH        body: sys.path, pickled
        HEARD       all that the last function wrote is read (answers OUTPUT)
    worker -> host
        READY       word: its pid, first: when; it runs calls from now on
        RETURNED    seq, word: peak RSS in KiB, first and second: when it began and ended; body: the value
        RAISED      as RETURNED; body: exception and traceback text
        UNSENDABLE  as RETURNED; body: message and traceback text
        SAID        seq, or 0; body: topic and content
        DROPPED
        BEGUN       a call begins: said where there are no tickets (`spawned_worker`)

Times are of CLOCK_MONOTONIC, which all processes of a machine share.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque

HEADER = struct.Struct("<IBBHIIdd")
"""Size of the body, kind, flags, number, seq, word, first, second."""
CALL_SIZES = struct.Struct("<III")
"""Sizes of job id, description and arguments in the body of a CALL; the rest is what is of this attempt."""

FUNCTION, CALL, DROP, PATH, HEARD = 1, 2, 3, 4, 5
READY, RETURNED, RAISED, UNSENDABLE, SAID, DROPPED, BEGUN = 16, 17, 18, 19, 20, 21, 22
RESULTS = frozenset({RETURNED, RAISED, UNSENDABLE})
"""Kinds of frames that end a call."""

NOTHING = 1
"""Flag: the value is None (of a CALL: there are no arguments), and its body empty."""
IN_FILE = 2
"""Flag: the body holds the sizes of what lies in the memory file passed along."""
OUTPUT = 4
"""Flag: the function wrote to its stdout or stderr, which is to be read before its result is told; nothing else begins
before HEARD."""
ONCE = 8
"""Flag: the function of this CALL is not to be kept for another."""
FORGET = 16
"""Flag of a FUNCTION: forget all others."""
LOUD = 32
"""Flag of a SAID: its topic is one that may not be left out, however much a job says."""

WORD = 0xFFFFFFFF
"""What seq and word hold at most: they start anew after it."""

_FD_SPACE = socket.CMSG_SPACE(8 * 4)
# Where it is missing, so are memory files: no descriptor travels.
_CLOSED_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_LOST_ONE = socket.MSG_CTRUNC

Frame = tuple[int, int, int, int, int, float, float, bytes]
"""Kind, flags, number, seq, word, first, second, body. Bare, since thousands are made a second."""


def frame(kind: int, flags: int = 0, *, seq: int = 0, word: int = 0, first: float = 0.0, body: bytes = b"") -> bytes:
    """A frame that is not a call nor a result: those are packed where they are made, for speed."""
    return HEADER.pack(len(body), kind, flags, 0, seq & WORD, word, first, 0.0) + body


class RemoteTraceback(Exception):
    """The traceback of an exception raised in a worker, as text: the `__cause__` of the exception that arrives."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class FrameReader:
    """Whole frames, as they arrive at a socket, and the descriptors that came with them, oldest first: -1 for one that
    was lost, since this process could have no more.

    Readers that are used in turn by one thread may share their `buffer`.
    """

    __slots__ = ("_buffer", "_buffers", "_partial", "_socket", "fds")

    def __init__(self, sock: socket.socket, buffer: bytearray) -> None:
        self.fds: deque[int] = deque()
        self._socket = sock
        self._buffer = buffer
        self._buffers = [buffer]
        self._partial = bytearray()

    def read(self) -> list[Frame]:
        """Receive once; the frames that are whole by that.

        Raises:
            BlockingIOError: nothing has arrived, and the socket does not wait.
            EOFError: the other side is gone.
        """
        count, ancillary, flags, _ = self._socket.recvmsg_into(self._buffers, _FD_SPACE, _CLOSED_ON_EXEC)
        for _, _, numbers in ancillary:
            self.fds.extend(array.array("i", numbers))
        if flags & _LOST_ONE:
            self.fds.append(-1)
        if not count:
            raise EOFError
        if not self._partial:
            return self._split(self._buffer, count)
        self._partial += memoryview(self._buffer)[:count]
        partial, self._partial = self._partial, bytearray()
        return self._split(partial, len(partial))

    def _split(self, source: bytearray, end: int) -> list[Frame]:
        frames: list[Frame] = []
        at = 0
        while end - at >= HEADER.size:
            size, kind, flags, number, seq, word, first, second = HEADER.unpack_from(source, at)
            body = at + HEADER.size
            if end - body < size:
                break
            at = body + size
            frames.append((kind, flags, number, seq, word, first, second, bytes(source[body:at])))
        if at < end:
            # A long frame grows in place; only what lies in the shared buffer has to be copied out of it.
            self._partial = source if at == 0 and source is not self._buffer else source[at:end]
        return frames

    def close(self) -> None:
        for fd in self.fds:
            if fd >= 0:
                os.close(fd)
        self.fds.clear()


def send_all(sock: socket.socket, frame: bytes, fd: int | None = None) -> None:
    """Write a frame to a socket that waits, with a descriptor for its receiver."""
    sent = 0
    if fd is not None:
        sent = sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    if sent < len(frame):
        sock.sendall(memoryview(frame)[sent:])
