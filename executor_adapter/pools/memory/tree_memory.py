"""Measures the memory that a process and its descendants hold together.

The sum of their resident memory is read quickly, but counts a page that several of them share (as after a fork) once
for each, and does not count what is in memory files that no process maps. So where that sum is near the limit, the
proportional memory (PSS) is read instead, which takes the kernel milliseconds, and memory files are added once each.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import NamedTuple

from executor_adapter.pools.memory.control_groups import mounts
from executor_adapter.worker.process_tree import resident, tree

_BLOCK_SIZE = 512
_MAY_WRITE = 0o200
_PSS = (b"Pss_Anon:", b"Pss_File:", b"Pss_Shmem:")

FileId = tuple[int, int]
"""The device and the inode."""


class TreeMemory(NamedTuple):
    """Holds the measured bytes of a tree of processes."""

    resident: int
    """Its resident memory; shared pages count once where it was near the limit."""
    used: int
    """The same with memory files. Only where it exceeds the limit it is exact; otherwise it may be too high."""
    at_least: int
    """The resident memory of its largest process, to which all others add."""


def measure(pid: int, limit: int) -> TreeMemory:
    """Measure the tree below and including `pid`, exactly if it may hold more than `limit` bytes."""
    members = tree(pid)
    files: dict[FileId, int] = {}
    holders = [member for member in members if _add_open_memory_files(member, files)]
    each = [resident(member) for member in members]
    total, largest = sum(each), max(each)
    if total + sum(files.values()) <= limit:
        return TreeMemory(total, total + sum(files.values()), largest)
    shares = [_proportional(member) for member in members]
    if None in shares:  # A kernel before 5.4, or a process of another user.
        return TreeMemory(total, total + sum(files.values()), largest)
    anonymous, of_files, shared = (sum(parts) for parts in zip(*filter(None, shares), strict=True))
    mapped = _mapped_among(holders, files)
    of_mapped = sum(files[file] for file in mapped)
    used = anonymous + of_files + max(shared, of_mapped) + sum(files.values()) - of_mapped
    return TreeMemory(anonymous + of_files + shared, used, largest)


def _proportional(pid: int) -> tuple[int, ...] | None:
    """Return the proportional memory: anonymous, of files, of memory files. Zero if it has ended; None if unknown."""
    found = dict.fromkeys(_PSS, -1)
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                key, _, value = line.partition(b" ")
                if key in found:
                    found[key] = int(value.split()[0]) << 10
    except ProcessLookupError:
        return (0, 0, 0)
    except OSError:
        return None if os.path.exists(f"/proc/{pid}") else (0, 0, 0)
    return None if -1 in found.values() else tuple(found.values())


def _add_open_memory_files(pid: int, files: dict[FileId, int]) -> bool:
    """Add the memory files that the process has open for writing, with the bytes they hold; return if there are any.

    A file that is only read (an input in a tmpfs) is not the job's.
    """
    found = False
    devices = _memory_devices()
    with contextlib.suppress(OSError):  # It has ended, or is another user's.
        for number in os.listdir(f"/proc/{pid}/fd"):
            link = f"/proc/{pid}/fd/{number}"
            with contextlib.suppress(OSError):
                status = os.stat(link)
                if status.st_dev in devices and status.st_blocks and os.lstat(link).st_mode & _MAY_WRITE:
                    files[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_SIZE
                    found = True
    return found


def _mapped_among(pids: list[int], files: dict[FileId, int]) -> set[FileId]:
    """Return which of the files the processes have mapped; their pages count in the proportional memory too."""
    by_inode = {file[1]: file for file in files}
    mapped = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
            for line in lines:
                inode = int(line.split(maxsplit=5)[4])
                if inode in by_inode:
                    mapped.add(by_inode[inode])
    return mapped


@functools.cache
def _memory_devices() -> frozenset[int]:
    """Return the devices of file systems that are in memory."""
    numbers = (fields[2].split(":") for fields, kind, _ in mounts() if kind in ("tmpfs", "ramfs"))
    devices = {os.makedev(int(major), int(minor)) for major, minor in numbers}
    with contextlib.suppress(OSError, AttributeError):
        fd = os.memfd_create("executor-adapter")  # Those have a device of their own, which is not mounted.
        devices.add(os.fstat(fd).st_dev)
        os.close(fd)
    return frozenset(devices)
