"""Processes and what they started: found through their parents, measured, and ended to the last one.

A worker is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): whatever it started, in its own session or forked
twice, stays below it. The guardian is one too: what a dead worker leaves behind becomes the guardian's own child.

The guardian imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator

TREE_VARIABLE = "EXECUTOR_ADAPTER_TREE"
"""Environment variable by which the tree of one guardian is known when the guardian itself is gone."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_LOOKS = 5
"""At a tree that is to be killed: one that grows faster must not hold up who kills it."""
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def become(name: str, *, dies_with_parent: bool = False) -> None:
    """Make the calling process a child subreaper called `name` (at most 15 bytes), killed when its parent dies if
    `dies_with_parent`."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    if dies_with_parent:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def children(pid: int) -> list[int]:
    """The processes that `pid` is the parent of, zombies included; none where it is gone."""
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
    """As `children`, for kernels built without CONFIG_PROC_CHILDREN."""
    return [pid for pid in _all_processes() if _parent_of(pid) == parent]


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may hold anything; the state and the parent follow it.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def tree(pid: int) -> list[int]:
    """`pid` and all that descends from it, as far as it is alive."""
    found = [pid]
    for member in found:
        found.extend(children(member))
    return found


def resident(pid: int) -> int:
    """Bytes of memory that one process holds resident; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def tree_resident(pid: int) -> int:
    """Bytes that a process and its descendants hold resident; pages that they share count once for each."""
    return sum(map(resident, tree(pid)))


def kill(pid: int) -> bool:
    """SIGKILL it; whether it is there to be killed, and not another user's (sudo makes such)."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_below(pid: int) -> None:
    """Kill all that descends from `pid`, a child subreaper that is alive.

    Who has been killed starts nothing more, so this looks again while it finds others, up to a few times.

    Raises:
        OSError: /proc cannot be read.
    """
    killed: set[int] = set()
    for _ in range(_MOST_LOOKS):
        found = [member for member in tree(pid)[1:] if member not in killed]
        for member in found:
            kill(member)
        if not found:
            break
        killed.update(found)


def kill_marked(token: str) -> int:
    """Kill every process whose environment bears the token of a guardian that is gone; how many there were.

    Reads all of /proc, so it is for that case alone. One that was started with an environment of its own escapes, and
    so may one that is born while this looks.

    Raises:
        OSError: /proc cannot be read.
    """
    mark = f"{TREE_VARIABLE}={token}".encode()
    killed = 0
    for pid in _all_processes():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's
            continue
        if marked and kill(pid):
            killed += 1
    return killed
