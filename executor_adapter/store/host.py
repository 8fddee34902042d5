"""Hosts: the executors that share a store, and how one detects that another has died.

On the same machine a host is dead as soon as its process and all its workers are; that is certain, see
`worker.presence`, unless another user holds the name of its presence. Only the lease shows whether a host on another
machine is dead.
"""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from executor_adapter.job import uuid7
from executor_adapter.worker.presence import is_held, is_held_by_process, own_presence


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Describes one executor, as other executors see it in the store."""

    host_id: str
    machine: str
    """Processes for which `this_machine` gives the same text see one another's process ids and presences."""
    pid: int
    process_started: int
    """Clock ticks from the machine's start to the process's; with the pid it identifies the process."""
    presence: str = ""
    """The name of its process's presence; "" where there is none."""
    is_expired: bool = False
    """Whether its lease was over when the store was read."""

    @property
    def is_gone(self) -> bool | None:
        """Whether the host was closed, or its process and all its workers are dead.

        None if this machine cannot determine it.
        """
        if self.host_id in _open_hosts:
            return False
        if not self.presence or self.machine != this_machine():
            return None
        if self.presence == own_presence().name:
            return True
        held = is_held(self.presence)
        return None if held is None else not held

    @property
    def is_over(self) -> bool:
        """Whether others may take over its jobs: it is gone, or its lease is over and decides.

        It decides where this machine cannot determine whether the host is gone, or where others hold its presence: any
        user may bind the name of a host that has died, which would look as if one of its workers were alive.
        """
        gone = self.is_gone
        decides = gone is None or (self.is_dying and not is_held_by_process(self.presence))
        return gone is True or (self.is_expired and decides)

    @property
    def is_dying(self) -> bool:
        """Whether the host's process is dead while one of its workers is not."""
        if self.host_id in _open_hosts or self.is_gone is not False:
            return False
        # A process that has become another program (exec) keeps its id, but no longer holds its presence.
        return self.pid == os.getpid() or _process_started(self.pid) != self.process_started


_open_hosts: set[str] = set()
"""The ids of this process's hosts that are not closed."""


def new_host() -> Host:
    """Return a new host of this process; it counts as alive until `close_host`."""
    pid = os.getpid()
    host = Host(
        host_id=uuid7(),
        machine=this_machine(),
        pid=pid,
        process_started=_process_started(pid) or 0,
        presence=own_presence().name,
    )
    _open_hosts.add(host.host_id)
    return host


def close_host(host: Host) -> None:
    """Mark a host of this process as dead."""
    _open_hosts.discard(host.host_id)


os.register_at_fork(after_in_child=_open_hosts.clear)


@functools.cache
def this_machine() -> str:
    """Identify the machine since its start, and its view of process ids and sockets: containers have their own."""
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
    """Return field 22 of /proc/PID/stat, see proc(5); None where there is no such process, or it is a zombie."""
    # The second field, the program's name, may hold anything, brackets and blanks included.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else int(fields[19])
