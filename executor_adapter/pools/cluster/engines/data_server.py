"""Lets workers on a node fetch and keep values in the engine's process there."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
from typing import Any, Protocol

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.cluster.node_data import FETCH, Kept, receive, send

logger = logging.getLogger("executor_adapter.cluster")

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED returns: pid, uid and gid."""


class DataStore(Protocol):
    """Reaches the values of an engine from its process on a node. Its methods may block, and are called in threads."""

    def fetch(self, name: Any) -> Any:
        """Return a value.

        Raises:
            Exception: it is not there.
        """

    def keep(self, name: str, value: Any) -> Kept:
        """Take a value; the name is new."""


class DataServer:
    """Listens at a socket of this machine, to which only processes of the same user may connect."""

    def __init__(self, store: DataStore) -> None:
        self.address = f"executor-adapter-{secrets.token_hex(16)}"
        """The name of its socket: one without a file, which is gone with this process."""
        self._store = store
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind("\0" + self.address)
        self._socket.listen(128)
        threading.Thread(target=self._accept, name="executor-adapter-data", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:  # It is closed.
                return
            threading.Thread(target=self._serve, args=(sock,), name="executor-adapter-data", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.getuid():
                return
            try:
                (what, about), value = receive(sock)
                answer = self._answer(what, about, value)
            except (EOFError, ConnectionError):  # Its job has ended.
                return
            except Exception as error:
                answer = (False, text_of(error)), None
            with contextlib.suppress(OSError):
                try:
                    send(sock, *answer)
                except OSError:
                    raise
                except Exception as error:
                    send(sock, (False, f"{about[-1]} cannot be pickled: {text_of(error)}"), None)

    def _answer(self, what: str, about: Any, value: Any) -> tuple[tuple[bool, Any], Any]:
        if what == FETCH:
            name, shown = about
            try:
                return (True, ""), self._store.fetch(name)
            except Exception as error:
                return (False, f"{shown} cannot be fetched: {text_of(error)}"), None
        job_id, number = about
        try:
            kept = self._store.keep(f"executor-adapter-{job_id}-{number}-{secrets.token_hex(4)}", value)
            # Not as a value: that would be loaded to check it, which in the program itself makes a reference.
            return (True, (kept.head, kept.name, kept.node)), None
        except Exception as error:
            return (False, f"the result cannot be kept on the cluster: {text_of(error)}"), None
