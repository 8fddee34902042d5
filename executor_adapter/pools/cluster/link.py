"""A stream of frames between a head and an agent. It never blocks.

Large values are sent as chunks between the frames, and several of them in turn, so that a STOP never waits for more
than one chunk.

Where the cluster of an engine uses TLS, so does the link, with the same certificates. Both sides prove that their
certificate is of the cluster's authority. The token is proved inside, since others may have certificates of the same
cluster. As in Dask, names of hosts are not checked: the authority is the cluster's own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster import frames
from executor_adapter.worker import values, wire

CHUNK_BYTES = 1 << 20
"""Bytes of a large value that are sent at once."""

_BUFFER_BYTES = 1 << 19
_MAX_RECORD = 1 << 14
"""Bytes that one record of TLS carries at most."""

Certificates = Mapping[str, str | None]
"""The files `ca_file`, `cert` and `key`, or their text, and `ciphers`, as Dask's `Security` has them for a role."""


class SocketEnd:
    """One end of a link over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.read_fd = self.write_fd = sock.fileno()

    def receive(self, buffer: bytearray) -> int:
        """Read into the buffer and return the number of bytes; 0 at the end of the stream."""
        return self._socket.recv_into(buffer)

    def send(self, data: memoryview) -> int:
        """Write what there is room for, and return its number of bytes."""
        return self._socket.send(data, wire.NO_SIGNAL)

    def close(self) -> None:
        self._socket.close()


class TlsEnd(SocketEnd):
    """One end of a link over TLS."""

    def receive(self, buffer: bytearray) -> int:
        view, count = memoryview(buffer), 0
        # A record that is not read whole would wait inside TLS, where nothing wakes the loop for it.
        while len(view) - count >= _MAX_RECORD:
            try:
                read = self._socket.recv_into(view[count:])
            except OSError as error:
                if count:
                    return count  # What is wrong is found again at the next call.
                if isinstance(error, ssl.SSLWantReadError | ssl.SSLWantWriteError):
                    raise BlockingIOError from None
                raise
            if not read:
                break
            count += read
        return count

    def send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None


def end_of(sock: socket.socket) -> SocketEnd:
    """Return the end of a link over a socket, with TLS or without."""
    return TlsEnd(sock) if isinstance(sock, ssl.SSLSocket) else SocketEnd(sock)


def tls_context(certificates: Certificates, *, listens: bool) -> ssl.SSLContext:
    """Return the context of one side of a connection.

    Raises:
        ConnectionError: a certificate is missing.
        OSError: one cannot be read, or is none.
    """
    ca, cert, key = (certificates.get(name) for name in ("ca_file", "cert", "key"))
    if not ca or not cert:
        missing = "ca_file" if not ca else "cert"
        raise ConnectionError(
            f"the cluster uses TLS, and {missing} is not set: see distributed.comm.tls of Dask, RAY_TLS_* of Ray"
        )
    purpose = ssl.Purpose.CLIENT_AUTH if listens else ssl.Purpose.SERVER_AUTH
    with _as_file(ca) as ca_file, _as_file(cert) as cert_file, _as_file(key) as key_file:
        context = ssl.create_default_context(purpose, cafile=ca_file)
        assert cert_file is not None
        context.load_cert_chain(cert_file, key_file)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # Authorities that clusters make for themselves often lack what this asks for, and Dask does without it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ciphers := certificates.get("ciphers"):
        context.set_ciphers(ciphers)
    return context


@contextlib.contextmanager
def _as_file(path_or_text: str | None) -> Iterator[str | None]:
    """Yield the path of a certificate; text is in a file that only this user can read, for as long as this lasts."""
    if path_or_text is None or "\n" not in path_or_text:
        yield path_or_text
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "certificate.pem")
        path.write_text(path_or_text)
        yield str(path)


class PipeEnd:
    """One end of a link over two descriptors, such as stdin and stdout."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        if os.path.sameopenfile(read_fd, write_fd):  # Both are of one socket, which is readable and writable.
            os.close(write_fd)
            write_fd = read_fd
        self.read_fd, self.write_fd = read_fd, write_fd
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    def receive(self, buffer: bytearray) -> int:
        return os.readv(self.read_fd, [buffer])

    def send(self, data: memoryview) -> int:
        return os.write(self.write_fd, data)

    def close(self) -> None:
        for fd in {self.read_fd, self.write_fd}:
            os.close(fd)


LinkEnd = SocketEnd | PipeEnd
"""One end of a stream, which does not block."""


def take_stdio() -> tuple[int, int]:
    """Return copies of stdin and stdout for frames; what anything here prints goes to stderr from now on."""
    taken = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return taken


def _chunks(seq: int, file: values.MemoryFile, then: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the chunks of a large value, the last one with the frame `then` behind it, and whether each is that."""
    size = os.fstat(file.fd).st_size
    for at in range(0, max(1, size), CHUNK_BYTES):  # One that a function has emptied is a chunk, too.
        chunk = wire.pack_frame(frames.FILE, seq=seq, body=os.pread(file.fd, CHUNK_BYTES, at))
        yield (chunk + then, True) if at + CHUNK_BYTES >= size else (chunk, False)


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
        self._loop = loop
        self._end = end
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._unsent: list[bytes] = []
        self._rest = memoryview(b"")
        self._files: dict[int, Iterator[tuple[bytes, bool]]] = {}
        """The chunks that are still to be sent of each large value, that whose turn is next first."""
        self._splitter = wire.FrameSplitter(bytearray(_BUFFER_BYTES))
        loop.watch(end.read_fd, self._read)
        if end.write_fd != end.read_fd:
            loop.watch(end.write_fd, self._lose)  # A pipe that is written is "readable" once nobody reads it.

    @property
    def has_unsent_frames(self) -> bool:
        """Whether a frame is not in the kernel's buffer yet."""
        return bool(self._unsent) or bool(self._rest)

    @property
    def unsent_files(self) -> int:
        """Number of large values that are not sent completely yet, each of which holds a descriptor."""
        return len(self._files)

    def send(self, frame: bytes) -> None:
        """Send a frame at the next `flush`."""
        if self.is_open:
            self._unsent.append(frame)

    def send_file(self, seq: int, file: values.MemoryFile, then: bytes) -> None:
        """Send a memory file in chunks, and after the last one the frame `then`."""
        if self.is_open:
            self._files[seq] = _chunks(seq, file, then)

    def cancel_file(self, seq: int) -> bool:
        """Do not send the rest of a memory file and its frame. Return False if that is sent already."""
        if self._files.pop(seq, None) is None:
            return False
        self.send(wire.pack_frame(frames.DROP_FILE, seq=seq))
        return True

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
                self._loop.watch_writable(self._end.write_fd, self.flush)
                return
            except OSError:
                self._lose()
                return
            self._rest = self._rest[sent:]
        if self.is_open:
            self._loop.watch_writable(self._end.write_fd, None)

    def _add_chunk(self) -> None:
        seq, chunks = next(iter(self._files.items()))
        del self._files[seq]
        chunk, is_last = next(chunks)
        self._unsent.append(chunk)
        if not is_last:
            self._files[seq] = chunks  # Behind the others, so that all of them advance.

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
        try:
            if arrived := self._splitter.split(count):
                self._on_frames(arrived)
        except Exception:
            self._lose()  # The jobs of the frames that are left unread would wait for them.
            raise

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
        self._files.clear()
        self._unsent.clear()


class ArrivingFiles:
    """Collects the chunks of large values, each in a memory file of its own."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}

    def add(self, seq: int, chunk: bytes) -> None:
        """Append a chunk to the file of `seq`. A file for which this machine has no room is lost."""
        try:
            if (fd := self._fds.get(seq)) is None:
                fd = self._fds[seq] = os.memfd_create("executor-adapter", os.MFD_CLOEXEC)
            rest = memoryview(chunk if fd >= 0 else b"")
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError:
            self.drop(seq)
            self._fds[seq] = -1

    def take(self, seq: int) -> int:
        """Return the descriptor of a complete file, at its beginning; -1 if it was lost."""
        if (fd := self._fds.pop(seq, -1)) >= 0:
            os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def drop(self, seq: int) -> None:
        """Close a file that is not needed."""
        if (fd := self._fds.pop(seq, -1)) >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close all files."""
        for seq in list(self._fds):
            self.drop(seq)
