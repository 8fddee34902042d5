"""How a head and an agent that connects by TCP prove to one another that they know the token, before any frame.

    head -> agent   32 random bytes
    agent -> head   32 random bytes, and HMAC-SHA256(token, "agent", both)
    head -> agent   HMAC-SHA256(token, "head", both)

The token itself is never sent over the connection. Until the proof is checked, nothing but its bytes is read. Where the
cluster uses TLS, all this happens inside it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from executor_adapter.pools.base import PoolSupervisor, Timer

NONCE_SIZE = 32
TOKEN_SIZE = 32
HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a connection may take to prove itself."""
_PROOF_SIZE = hashlib.sha256().digest_size
_ANSWER_SIZE = NONCE_SIZE + _PROOF_SIZE


def _proof(token: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(token, role + nonces, "sha256")


def prove(sock: socket.socket, token: bytes) -> None:
    """Prove on a blocking socket that this agent knows the token, and check that the head does.

    Raises:
        ConnectionError: the head does not know it, or has closed the connection.
    """
    sock.settimeout(HANDSHAKE_TIMEOUT)
    theirs = _receive(sock, NONCE_SIZE)
    ours = secrets.token_bytes(NONCE_SIZE)
    sock.sendall(ours + _proof(token, b"agent", theirs + ours))
    if not hmac.compare_digest(_receive(sock, _PROOF_SIZE), _proof(token, b"head", theirs + ours)):
        raise ConnectionError("what listens at the head's address does not know the token")
    sock.settimeout(None)


def _receive(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = sock.recv(size - len(received))
        if not part:
            raise ConnectionError("the head has closed the connection: it does not know this agent's token")
        received += part
    return received


class Door:
    """Listens for agents, and passes on each connection that has proved itself. Supervisor thread only.

    `on_agent(sock)` is called for each of these. All others are closed. `context`: that of TLS, where it is used.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        host: str,
        token: bytes,
        on_agent: Callable[[socket.socket], None],
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._context = context
        self._supervisor = supervisor
        self._token = token
        self._on_agent = on_agent
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family)
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._guests: set[_Guest] = set()
        supervisor.watch(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:  # The other side has gone, or no descriptor is left.
            return
        if self._context is not None:
            sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        guest = _Guest(self._supervisor, sock, self._token, self._on_proved)
        self._guests.add(guest)
        guest.begin()

    def _on_proved(self, guest: _Guest, sock: socket.socket | None) -> None:
        self._guests.discard(guest)
        if sock is not None:
            self._on_agent(sock)

    def close(self) -> None:
        """Listen no more."""
        self._supervisor.unwatch(self._socket.fileno())
        self._socket.close()
        for guest in list(self._guests):
            guest.refuse()


class _Guest:
    """A connection that has not proved itself yet."""

    def __init__(
        self,
        supervisor: PoolSupervisor,
        sock: socket.socket,
        token: bytes,
        on_end: Callable[[_Guest, socket.socket | None], None],
    ) -> None:
        self._supervisor = supervisor
        self._socket = sock
        self._token = token
        self._on_end = on_end
        self._nonce = secrets.token_bytes(NONCE_SIZE)
        self._received = b""
        self._has_ended = False
        self._in_tls: ssl.SSLSocket | None = None
        """The socket while TLS begins."""
        sock.setblocking(False)
        supervisor.watch(sock.fileno(), self._read)
        self._timer: Timer = supervisor.call_at(supervisor.now() + HANDSHAKE_TIMEOUT, self.refuse)

    def begin(self) -> None:
        """Begin TLS, where it is used, and send the first bytes then."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._in_tls = self._socket
            self._continue_tls(self._socket)
        else:
            self._send(self._nonce)

    def _continue_tls(self, sock: ssl.SSLSocket) -> None:
        fd = sock.fileno()
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            self._supervisor.watch_writable(fd, None)
        except ssl.SSLWantWriteError:
            self._supervisor.watch_writable(fd, self._read)
        except OSError:  # Its certificate is none of the cluster, or it does not speak TLS.
            self.refuse()
        else:
            self._in_tls = None
            self._supervisor.watch_writable(fd, None)
            self._send(self._nonce)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)  # A new connection has room for so little.
        except OSError:
            self.refuse()

    def _read(self) -> None:
        if self._in_tls is not None:
            self._continue_tls(self._in_tls)
            return
        try:
            part = self._socket.recv(_ANSWER_SIZE - len(self._received))
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            part = b""
        self._received += part
        if not part:
            self.refuse()
        elif len(self._received) == _ANSWER_SIZE:
            nonces = self._nonce + self._received[:NONCE_SIZE]
            if hmac.compare_digest(self._received[NONCE_SIZE:], _proof(self._token, b"agent", nonces)):
                self._send(_proof(self._token, b"head", nonces))
                self._end(self._socket)
            else:
                self.refuse()

    def refuse(self) -> None:
        """Close the connection."""
        if self._end(None):
            self._socket.close()

    def _end(self, sock: socket.socket | None) -> bool:
        if self._has_ended:
            return False
        self._has_ended = True
        self._timer.cancel()
        self._supervisor.unwatch(self._socket.fileno())
        self._on_end(self, sock)
        return True


def host_towards(address: str) -> str:
    """Return the address of this machine on the network by which it reaches another: nothing listens on other ones.

    `address`: host and port, with a scheme or without. Workers within this process have none.
    """
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme == "inproc" or parts.hostname is None:
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 1))  # This sends nothing.
        return str(probe.getsockname()[0])
