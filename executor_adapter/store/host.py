"""Hosts: the executors that share a store, and whether one is gone.

On one machine a host is gone when its process is, at once and for sure: a pid may be used again, but not with the same
start time. Of a host elsewhere only its lease tells.
"""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from executor_adapter.job import uuid7


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One executor, as others see it in the store."""

    host_id: str
    machine: str
    """Processes that give the same text here see one another's process ids."""
    pid: int
    process_started: int
    """With the pid it tells a process from a later one of the same pid; clock ticks since the machine started."""

    @property
    def is_gone(self) -> bool | None:
        """Whether its process is gone, or has let go of it; None where this machine cannot know."""
        if self.machine != this_machine():
            return None
        if self.pid == os.getpid() and self.process_started == _process_started(self.pid):
            return self.host_id not in _here
        return _process_started(self.pid) != self.process_started


_here: set[str] = set()
"""Hosts of this process that are not closed."""


def new_host() -> Host:
    """A host of this process, until `forget` is called with it."""
    pid = os.getpid()
    host = Host(host_id=uuid7(), machine=this_machine(), pid=pid, process_started=_process_started(pid) or 0)
    _here.add(host.host_id)
    return host


def forget(host: Host) -> None:
    _here.discard(host.host_id)


@functools.cache
def this_machine() -> str:
    """The machine since it was started, and its view of process ids (containers have each their own)."""
    return f"{socket.gethostname()} {_read('/proc/sys/kernel/random/boot_id')} {_pid_namespace()}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
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
