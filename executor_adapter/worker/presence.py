"""Whether anything of a process is left: the process itself, its guardian and workers, whichever dies last.

All of them hold one socket, bound to a name in Linux's abstract namespace: the process makes it, the others inherit it.
The kernel frees the name when the last of them has died, whatever killed it, and not before it has ceased to run code.
There is no file that could be left behind, and nothing to do while jobs run. The name is known in one network
namespace, to all users of it.

Who is forked without being one of them (by the program, or by a job's function) lets go of it at once.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from typing import NamedTuple


class Presence(NamedTuple):
    """What a process holds, and gives to whoever runs its jobs."""

    name: str
    """By which others ask for it; "" where the system has no such thing."""
    fds: tuple[int, ...]
    """Its descriptor, where there is one."""


NO_PRESENCE = Presence("", ())

_lock = threading.Lock()
_mine: Presence | None = None


def presence() -> Presence:
    """That of this process, from its first use on until it ends."""
    global _mine
    with _lock:
        if _mine is None:
            _mine = _take()
        return _mine


def is_held(name: str) -> bool | None:
    """Whether anybody holds it; None where this process may not know. Where it cannot ask now, it is held."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            asking.connect(_address(name))
    except ConnectionRefusedError:
        return False
    except PermissionError:  # a sandbox
        return None
    except OSError:
        pass
    return True


def _take() -> Presence:
    if sys.platform != "linux":
        return NO_PRESENCE
    name = secrets.token_hex(16)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(_address(name))
    except PermissionError:  # a sandbox
        sock.close()
        return NO_PRESENCE
    return Presence(name, (sock.detach(),))


def _address(name: str) -> str:
    return f"\0executor-adapter/{name}"


def _let_go() -> None:
    """In a forked process: it is another."""
    global _lock, _mine
    _lock = threading.Lock()
    if _mine is not None:
        for fd in _mine.fds:
            os.close(fd)
    _mine = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
