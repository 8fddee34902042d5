"""Hosts: the executors that share a store, and whether one is gone.

On one machine a host is gone when its process is, and all that ran for it: at once, and for sure (see `presence`). Of a
host elsewhere only its lease tells.
"""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from executor_adapter.job.model import uuid7
from executor_adapter.worker.presence import is_held, presence


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One executor, as others see it in the store."""

    host_id: str
    machine: str
    """Processes that give the same text here see one another's process ids and presences."""
    pid: int
    process_started: int
    """With the pid it tells a process from a later one of the same pid; clock ticks since the machine started."""
    presence: str = ""
    """The name of its process's presence; "" where there is none."""

    @property
    def is_gone(self) -> bool | None:
        """Whether nothing is left of its process and what ran for it, or that has let go of it; None where this
        machine cannot know."""
        if self.host_id in _here:
            return False
        if not self.presence or self.machine != this_machine():
            return None
        if self.presence == presence().name:
            return True
        held = is_held(self.presence)
        return None if held is None else not held

    @property
    def is_dying(self) -> bool:
        """Whether its process is gone, and what ran for it is not yet."""
        if self.host_id in _here or self.is_gone is not False:
            return False
        # One that has become another program (exec) has its id, and no longer its presence.
        return self.pid == os.getpid() or _process_started(self.pid) != self.process_started


_here: set[str] = set()
"""Hosts of this process that are not closed."""


def new_host() -> Host:
    """A host of this process, until `forget` is called with it."""
    pid = os.getpid()
    host = Host(
        host_id=uuid7(),
        machine=this_machine(),
        pid=pid,
        process_started=_process_started(pid) or 0,
        presence=presence().name,
    )
    _here.add(host.host_id)
    return host


def forget(host: Host) -> None:
    _here.discard(host.host_id)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_here.clear)


@functools.cache
def this_machine() -> str:
    """The machine since it was started, and its view of process ids and sockets (containers have each their own)."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot} {_namespace('pid')} {_namespace('net')}"


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _process_started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, see proc(5); None where there is no such process, or it is a zombie."""
    # The second field, the program's name, may hold anything, brackets and blanks included.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else int(fields[19])
