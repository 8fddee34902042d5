"""Finds, measures and kills a process with everything that it started.

A worker is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): whatever it starts, in another session or forked
twice, stays below it. The guardian is one too: what a dead worker leaves behind becomes the guardian's own child.

The guardian imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator

TREE_VARIABLE = "EXECUTOR_ADAPTER_TREE"
"""Environment variable that marks the processes of one guardian, to find them when the guardian has died."""

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_MAX_SCANS = 5
"""Max scans of a tree while it is killed: a tree that grows faster must not block the caller forever."""
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def become_subreaper(name: str, *, dies_with_parent: bool = False) -> None:
    """Make the calling process a child subreaper and name it `name` (at most 15 bytes).

    `dies_with_parent`: the kernel kills it when its parent dies.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    if dies_with_parent:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def children(pid: int) -> list[int]:
    """Return the children of a process, zombies included; none if the process has ended."""
    found: list[int] = []
    try:
        # Each thread has a list of its own.
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        return found if _has_children_files() else _children_by_scan(pid)
    return found


def _has_children_files() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _children_by_scan(parent: int) -> list[int]:
    """Return what `children` returns, on kernels built without CONFIG_PROC_CHILDREN."""
    return [pid for pid in _all_processes() if _parent_of(pid) == parent]


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may contain anything; the state and the parent follow it.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def tree(pid: int) -> list[int]:
    """Return `pid` and its living descendants."""
    found = [pid]
    for member in found:
        found.extend(children(member))
    return found


def resident(pid: int) -> int:
    """Return the resident memory of one process in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_SIZE
    except (OSError, IndexError):
        return 0


def tree_resident(pid: int) -> int:
    """Return the resident memory of a process and its descendants in bytes; shared pages count once for each."""
    return sum(map(resident, tree(pid)))


def kill(pid: int) -> bool:
    """Send SIGKILL. Return False if the process has ended, or belongs to another user (as one started by sudo)."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_below(pid: int) -> None:
    """Kill all descendants of `pid`, which must be a living child subreaper.

    Killed processes start nothing more, so this scans again until it finds no others, at most _MAX_SCANS times.

    Raises:
        OSError: /proc cannot be read.
    """
    killed: set[int] = set()
    for _ in range(_MAX_SCANS):
        found = [member for member in tree(pid)[1:] if member not in killed]
        for member in found:
            kill(member)
        if not found:
            break
        killed.update(found)


def kill_marked(token: str) -> int:
    """Kill every process whose environment contains the token of a dead guardian. Return how many there were.

    This reads all of /proc, so it is for that case alone. It misses a process that was started with an environment of
    its own, and may miss one that starts during the scan.

    Raises:
        OSError: /proc cannot be read.
    """
    mark = f"{TREE_VARIABLE}={token}".encode()
    killed = 0
    for pid in _all_processes():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # It has ended, or belongs to another user.
            continue
        if marked and kill(pid):
            killed += 1
    return killed
