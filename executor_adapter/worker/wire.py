"""The frames that a host and its workers exchange over one stream socket. Large values travel beside them (`values`).

A frame is a header of fixed size and a body. Both sides write frames whole and read whatever has arrived. A frame that
its writer did not live to finish is seen as the end of the stream, and no part of it is ever used.

    host -> worker
        FUNCTION    word: its number; body: the encoded function       later calls refer to it by number
        CALL        seq, number of the attempt, word: the function's number, first: max_runtime or 0
                    body: CALL_SIZES, job id, job description, arguments, what belongs to this attempt alone
        DROP        seq: discard this call and all later ones, then answer DROPPED
        PATH        body: sys.path, and the key of multiprocessing's managers or None, pickled
        OUTPUT_READ all output of the last function has been read (answers HAS_OUTPUT)
    worker -> host
        READY       word: its pid, first: the time; it runs calls from now on
        RETURNED    seq, word: peak RSS in KiB, first and second: start and end of the call; body: the value
        RAISED      like RETURNED; body: the facts of the error, the exception
        UNSENDABLE  like RAISED; the exception is a JobSerializationError
        MESSAGE     seq, or 0; body: topic and content, plain data
        DROPPED
    agent -> host
        STARTED     see `pools.cluster.frames`

Times are of CLOCK_MONOTONIC, which all processes of a machine share; those of leases are `lease_time`.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence

HEADER = struct.Struct("<IBBHIIdd")
"""Size of the body, kind, flags, number, seq, word, first, second."""
CALL_SIZES = struct.Struct("<III")
"""Sizes of job id, job description and arguments in the body of a CALL; the rest belongs to this attempt alone."""

FUNCTION, CALL, DROP, PATH, OUTPUT_READ = 1, 2, 3, 4, 5
READY, RETURNED, RAISED, UNSENDABLE, MESSAGE, DROPPED, STARTED = 16, 17, 18, 19, 20, 21, 22
RESULT_KINDS = frozenset({RETURNED, RAISED, UNSENDABLE})
"""Kinds of frames that end a call."""

NO_VALUE = 1
"""Flag: the value is None (in a CALL: there are no arguments), and the body is empty."""
IN_FILE = 2
"""Flag: the value is in the memory file passed along; the body holds the sizes of its parts."""
HAS_OUTPUT = 4
"""Flag: the function wrote to its stdout or stderr. The host reads that before it reports the result, and the worker
starts nothing before OUTPUT_READ."""
FACTS = 8
"""Flag of a result: its body begins with plain data, pickled: the fields of the error's `ErrorFacts`, or the number of
records that a value states."""
USE_ONCE = 8
"""Flag: the function of this CALL is not kept for another one."""
FORGET_OTHERS = 16
"""Flag of a FUNCTION: forget all other functions."""
UNTHROTTLED = 32
"""Flag of a MESSAGE: it is never left out, however many messages a job sends."""
OWN_WORKER = 16
"""Flag of a CALL: its worker runs nothing before or after it. It is for the host."""
KEEP = 128
"""Flag of a CALL: its result stays where its worker is, and the host gets a reference to it."""

MAX_WORD = 0xFFFFFFFF
"""The largest value of seq and word, which restart at 0 after it."""

REFUSED_TIMEOUT = 5.0
"""Seconds for which a worker that the system refuses is tried again, where there is no other one."""
EXIT_SECONDS = 5
"""Seconds that the exit functions of a worker may take; one that takes longer is killed."""

_FD_SPACE = socket.CMSG_SPACE(8 * 4)
# Systems without this flag have no memory files either, so no descriptor travels there.
_CLOSED_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_FD_LOST = int(socket.MSG_CTRUNC)  # An enum member would make another one of it with each read.

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""For every send: a receiver that has died is an error, also where the program has SIGPIPE end it."""

_BOOT_TIME = getattr(time, "CLOCK_BOOTTIME", None)

Frame = tuple[int, int, int, int, int, float, float, bytes]
"""Kind, flags, number, seq, word, first, second, body. A bare tuple, since thousands are made a second."""


def pack_frame(
    kind: int, flags: int = 0, *, seq: int = 0, word: int = 0, first: float = 0.0, body: bytes = b""
) -> bytes:
    """Return a frame that is neither a call nor a result: those are packed where they are made, for speed."""
    return HEADER.pack(len(body), kind, flags, 0, seq & MAX_WORD, word, first, 0.0) + body


def lease_time() -> float:
    """Return seconds on the clock of leases, which all processes of the machine share.

    On Linux it counts while the machine is suspended, as the clock of a database on another machine does.
    """
    return time.monotonic() if _BOOT_TIME is None else time.clock_gettime(_BOOT_TIME)


class RemoteTraceback(Exception):  # noqa: N818  named as in concurrent.futures and multiprocessing
    """Carries the traceback text of an exception raised in a worker, as the `__cause__` of the exception itself."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    @property
    def text(self) -> str:
        """The traceback, as lines."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class FrameSplitter:
    """Splits a stream into frames. What is received is put into the first bytes of `buffer`."""

    __slots__ = ("_partial", "buffer")

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self._partial = bytearray()

    def split(self, count: int) -> list[Frame]:
        """Return the frames that are complete now that `count` bytes more are in the buffer."""
        if not self._partial:
            return self._split(self.buffer, count)
        self._partial += memoryview(self.buffer)[:count]
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
            # A long frame grows in place; only what is in the shared buffer has to be copied out of it.
            self._partial = source if at == 0 and source is not self.buffer else source[at:end]
        return frames


class FrameReader(FrameSplitter):
    """Reads whole frames from a socket, and the file descriptors that came with them.

    `fds` holds the descriptors, oldest first. A descriptor that was lost, because this process has reached its limit,
    is -1 there. Readers that are used in turn by one thread may share their `buffer`.
    """

    __slots__ = ("_buffers", "_socket", "fds")

    def __init__(self, sock: socket.socket, buffer: bytearray) -> None:
        super().__init__(buffer)
        self.fds: deque[int] = deque()
        self._socket = sock
        self._buffers = [buffer]

    def read(self) -> list[Frame]:
        """Receive once and return the frames that are complete now.

        Raises:
            BlockingIOError: nothing has arrived, and the socket does not block.
            EOFError: the other side has closed the socket.
        """
        count, ancillary, flags, _ = self._socket.recvmsg_into(self._buffers, _FD_SPACE, _CLOSED_ON_EXEC)
        for _, _, numbers in ancillary:
            self.fds.extend(array.array("i", numbers))
        if flags & _FD_LOST:
            self.fds.append(-1)
        if not count:
            raise EOFError
        return self.split(count)

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        for fd in self.fds:
            if fd >= 0:
                os.close(fd)
        self.fds.clear()


def send_fds(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """Send what there is room for, with descriptors for its receiver if there are any; return how much that was."""
    # `socket.send_fds` takes flags, and leaves them out.
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, NO_SIGNAL)
