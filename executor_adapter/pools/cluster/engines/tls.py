"""TLS between a program and its agents, with the certificates of the engine's cluster.

Both sides prove that their certificate is of the cluster's authority, and what is sent is encrypted. The token is
proved inside, since others may have certificates of the same cluster. As in Dask, names of hosts are not checked: the
authority is the cluster's own.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from executor_adapter.pools.cluster.link import LinkEnd, SocketEnd

_MAX_RECORD = 1 << 14
"""Bytes that one record of TLS carries at most."""

Certificates = Mapping[str, str | None]
"""The files `ca_file`, `cert` and `key`, or their text, and `ciphers`, as Dask's `Security` has them for a role."""


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
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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


class TlsEnd:
    """One end of a link over TLS."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.read_fd = self.write_fd = sock.fileno()

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

    def close(self) -> None:
        self._socket.close()


def end_of(sock: socket.socket) -> LinkEnd:
    """Return the end of a link over a socket, with TLS or without."""
    return TlsEnd(sock) if isinstance(sock, ssl.SSLSocket) else SocketEnd(sock)
