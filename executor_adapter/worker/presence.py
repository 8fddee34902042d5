"""Presence: a liveness lock, a socket name held by a host process, its guardian and its workers.

The host binds a socket to a name in Linux's abstract namespace; its guardian and workers inherit it. The kernel frees
the name when the last holder has died, whatever killed it, and not before that process has stopped running code. So
there is no file to leave behind, and nothing to do while jobs run. The name is visible to all users of one network
namespace, and each of them may bind it once it is free. So the name ends with the number of the socket, which nobody
else's has: `is_held_by_process` tells our processes from theirs.

A process that is forked without being a guardian or worker (by the program, or by a job's function) closes the socket
at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
from typing import NamedTuple


class Presence(NamedTuple):
    """The lock that a process holds, and passes on to the processes that run its jobs."""

    name: str
    """The name by which others check it; "" on systems without abstract sockets."""
    fds: tuple[int, ...]
    """Its file descriptor, if there is one."""


NO_PRESENCE = Presence("", ())

_lock = threading.Lock()
_own: Presence | None = None


def own_presence() -> Presence:
    """Return the presence of this process: taken at the first call, and held until the process ends."""
    global _own
    with _lock:
        if _own is None:
            _own = _take()
        return _own


def is_held(name: str) -> bool | None:
    """Return whether any process holds the presence `name`.

    Returns None if this process is not allowed to check, and True if the check fails for another reason.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(_address(name))
    except ConnectionRefusedError:
        return False
    except PermissionError:  # A sandbox may forbid this.
        return None
    except OSError:
        pass
    return True


def is_held_by_process(name: str) -> bool:
    """Return whether a process that this one may look into holds the presence `name`, and not just a socket so named.

    This reads all of /proc, so it is for a name that is held though its host has died.
    """
    held = f"socket:[{name.rpartition('.')[2]}]"
    return any(_holds(pid, held) for pid in os.listdir("/proc") if pid.isdigit())


def _holds(pid: str, held: str) -> bool:
    with contextlib.suppress(OSError):  # It has ended, or is another user's.
        return any(_link(f"/proc/{pid}/fd/{fd}") == held for fd in os.listdir(f"/proc/{pid}/fd"))
    return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _take() -> Presence:
    if sys.platform != "linux":
        return NO_PRESENCE
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"{secrets.token_hex(16)}.{os.fstat(sock.fileno()).st_ino}"
    try:
        sock.bind(_address(name))
    except PermissionError:  # A sandbox may forbid this.
        sock.close()
        return NO_PRESENCE
    return Presence(name, (sock.detach(),))


def _address(name: str) -> str:
    return f"\0executor-adapter/{name}"


def _release_after_fork() -> None:
    """Close the inherited socket: a forked process is another host, with a presence of its own."""
    global _lock, _own
    _lock = threading.Lock()
    if _own is not None:
        for fd in _own.fds:
            os.close(fd)
    _own = None


os.register_at_fork(after_in_child=_release_after_fork)
