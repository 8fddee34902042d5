"""How a head and an agent that connects by TCP prove to one another that they know the token, before any frame.

    head -> agent   32 random bytes
    agent -> head   32 random bytes, and HMAC-SHA256(token, "agent", both)
    head -> agent   HMAC-SHA256(token, "head", both)

The token itself is never sent over the connection. Until the proof is checked, nothing but its bytes is read. Where the
cluster uses TLS, all this happens inside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

NONCE_SIZE = 32
TOKEN_SIZE = 32
HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a connection may take to prove itself."""
MAX_GUESTS = 64
"""Connections that may be proving themselves at once."""
RELAY_BYTES = 1 << 18
"""Bytes that a relay carries at once."""
ACCEPT_PAUSE = 0.1
"""Seconds without an attempt to accept a connection after one that failed."""
_PROOF_SIZE = hashlib.sha256().digest_size


def _proof(token: bytes, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(token, role + nonces, "sha256")


def prove(sock: socket.socket, token: bytes) -> None:
    """Prove on a blocking socket that this agent knows the token, and check that the head does.

    Raises:
        ConnectionError: the head does not know it, or has closed the connection.
        TimeoutError: it takes too long.
    """
    until = time.monotonic() + HANDSHAKE_TIMEOUT
    theirs = _receive(sock, NONCE_SIZE, until)
    ours = secrets.token_bytes(NONCE_SIZE)
    sock.sendall(ours + _proof(token, b"agent", theirs + ours))
    if not hmac.compare_digest(_receive(sock, _PROOF_SIZE, until), _proof(token, b"head", theirs + ours)):
        raise ConnectionError("what listens at the head's address does not know the token")
    sock.settimeout(None)


def _check(sock: socket.socket, token: bytes, until: float) -> None:
    """Do the same for the head."""
    ours = secrets.token_bytes(NONCE_SIZE)
    sock.sendall(ours)
    answer = _receive(sock, NONCE_SIZE + _PROOF_SIZE, until)
    nonces = ours + answer[:NONCE_SIZE]
    if not hmac.compare_digest(answer[NONCE_SIZE:], _proof(token, b"agent", nonces)):
        raise ConnectionError("what has connected does not know the token")
    sock.sendall(_proof(token, b"head", nonces))


def _receive(sock: socket.socket, size: int, until: float) -> bytes:
    received = b""
    while len(received) < size:
        sock.settimeout(max(0.001, until - time.monotonic()))
        part = sock.recv(size - len(received))
        if not part:
            raise ConnectionError("the head has closed the connection: it does not know this agent's token")
        received += part
    return received


class Door:
    """Listens for agents, and passes on each connection that has proved itself.

    `on_agent(sock)` is called for each of these on the supervisor's thread. All others are closed: those that prove
    nothing in time, and the one that has waited longest where more than MAX_GUESTS wait. `ports`: the first that is
    free is taken; 0 stands for any. `context`: that of TLS, where it is used.
    """

    def __init__(
        self,
        call_soon: Callable[..., None],
        host: str,
        token: bytes,
        on_agent: Callable[[socket.socket], object],
        context: ssl.SSLContext | None = None,
        ports: Sequence[int] = (0,),
    ) -> None:
        self._call_soon, self._on_agent = call_soon, on_agent
        self._token = token
        self._context = context
        self._socket = listen(host, ports)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._guests: dict[socket.socket, None] = {}
        """The connections that have not proved themselves yet, the oldest first."""
        serve_connections(self._socket, self._meet, "executor-adapter-door")

    def _meet(self, guest: socket.socket) -> None:
        until = time.monotonic() + HANDSHAKE_TIMEOUT
        try:
            if self._context is not None:
                guest = self._context.wrap_socket(guest, server_side=True, do_handshake_on_connect=False)
            self._guests[guest] = None
            for oldest in [*self._guests][:-MAX_GUESTS]:
                _end(oldest)
            guest.settimeout(HANDSHAKE_TIMEOUT)
            if isinstance(guest, ssl.SSLSocket):
                guest.do_handshake()
            _check(guest, self._token, until)
        except OSError:  # It has gone, does not know the token, or has no certificate of the cluster.
            guest.close()
        else:
            self._call_soon(self._pass_on, guest)
        finally:
            self._guests.pop(guest, None)

    def _pass_on(self, sock: socket.socket) -> None:
        if self._socket.fileno() < 0:
            sock.close()
        else:
            self._on_agent(sock)

    def close(self) -> None:
        """Listen no more. Supervisor thread only."""
        for sock in (self._socket, *list(self._guests)):
            _end(sock)
        self._socket.close()


def serve_connections(listening: socket.socket, serve: Callable[[socket.socket], object], name: str) -> None:
    """Call `serve` with each connection, in a thread of its own, until the listening socket is closed.

    Where no descriptor is left, none is accepted until there is one again. One is closed for which no thread starts
    now: who has connected finds that out, and may do so again.
    """

    def accept() -> None:
        while listening.fileno() >= 0:
            try:
                sock = listening.accept()[0]
            except OSError:  # It is closed, or the other side has gone, or no descriptor is left.
                time.sleep(ACCEPT_PAUSE)
                continue
            try:
                threading.Thread(target=serve, args=(sock,), name=name, daemon=True).start()
            except RuntimeError:
                sock.close()

    threading.Thread(target=accept, name=name, daemon=True).start()


def ports_of(listen_port: int | str | None) -> range:
    """Return the ports to try; the setting names one, or the first and the last one of a range, or None for any."""
    first, _, last = str(listen_port or 0).partition("-")
    return range(int(first), int(last or first) + 1)


def advertised(advertise: str | None, host: str, port: int) -> list[Any]:
    """Return what agents connect to where the program listens at a host and port. `advertise`: the setting."""
    parts = urlsplit(f"//{advertise}")
    return [host, port] if advertise is None else [parts.hostname, parts.port or port]


def listen(host: str, ports: Sequence[int]) -> socket.socket:
    """Listen at the first of these ports that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports[:-1]:
        with contextlib.suppress(OSError):
            return socket.create_server((host, port), family=family)
    return socket.create_server((host, ports[-1]), family=family)


def _end(sock: socket.socket) -> None:
    """Let the thread that waits for a socket go on: its stream is over."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def relay(door: tuple[str, int], read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    """Carry the stream of an agent that cannot connect to a door, by calls that may block.

    `read` returns what the agent has sent, and b"" at its end; `write` takes what it is sent, likewise. Where a call
    fails the stream stands still, and does not end: what the agent runs may still be alive.
    """
    sock = socket.create_connection(door)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry_in() -> None:
        with contextlib.suppress(BaseException):
            while part := read():
                sock.sendall(part)
            _end(sock)

    def carry_back() -> None:
        with sock, contextlib.suppress(OSError):
            with contextlib.suppress(BaseException):
                while part := sock.recv(RELAY_BYTES):
                    write(part)
                write(b"")
            while sock.recv(RELAY_BYTES):  # A call has failed: the door's side ends when it gives the agent up.
                continue

    for carry in (carry_in, carry_back):
        threading.Thread(target=carry, name="executor-adapter-relay", daemon=True).start()


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
