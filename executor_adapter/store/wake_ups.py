"""Wake-ups between the programs of one machine that share a store.

A host that waits for a slot of a tool asks the store from time to time. So that it need not ask often, a program that
frees a slot, or changes what holds for a tool, sends a datagram to it: an empty one, to a name in Linux's abstract
namespace. Nothing depends on it: where there are no such names, or the datagram is lost, the host asks a little later.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterable

IS_SUPPORTED = sys.platform == "linux"
MAX_DRAINED = 100
"""Wake-ups that are removed at once, so that a sender that never ceases keeps nobody."""


class WakeUpReceiver:
    """Receives wake-ups for one host. `fileno` is readable when there are some; None where there are never any."""

    def __init__(self, host_id: str) -> None:
        self._socket: socket.socket | None = None
        if IS_SUPPORTED:
            receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                receiver.setblocking(False)
                receiver.bind(_address(host_id))
                self._socket = receiver
            except OSError:  # A sandbox may forbid this, or another user has taken the name.
                receiver.close()

    def fileno(self) -> int | None:
        """Return the descriptor to wait for."""
        return None if self._socket is None else self._socket.fileno()

    def drain(self) -> None:
        """Remove the wake-ups that have arrived, at most MAX_DRAINED."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                for _ in range(MAX_DRAINED):
                    self._socket.recv(1)

    def close(self) -> None:
        """Receive no more."""
        if self._socket is not None:
            self._socket.close()


def wake_hosts(host_ids: Iterable[str]) -> None:
    """Wake these hosts, as far as they are on this machine and wait."""
    if not IS_SUPPORTED:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for host_id in host_ids:
            with contextlib.suppress(OSError):
                sender.sendto(b"", _address(host_id))


def _address(host_id: str) -> str:
    return f"\0executor-adapter/tools/{host_id}"
