"""Finds what a chaos run left: processes, threads, descriptors, shared memory, temporary files."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor_adapter.worker.process_tree import children
from tests.contract.chaos.functions import LINGERING


@dataclass(frozen=True, slots=True)
class ResourceSnapshot:
    """The resources in use now, of the kinds that an executor uses. `scratch`: the directory of temporary files."""

    processes: frozenset[int]
    threads: frozenset[str]
    descriptors: frozenset[tuple[str, str]]
    shared: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls, scratch: Path, tokens: Iterable[bytes] = (), *, orphans: bool = True) -> ResourceSnapshot:
        """Take stock; `orphans`: of processes that jobs have left anywhere on this machine too."""
        gc.collect()
        orphaned = lingering() if orphans else frozenset()
        return cls(
            processes=frozenset(children(os.getpid())) | orphaned | marked_by(tokens),
            threads=frozenset(f"{thread.name} {thread.ident}" for thread in threading.enumerate()),
            descriptors=frozenset(_descriptors()),
            shared=frozenset(_shared_memory()),
            files=frozenset(str(path) for path in scratch.rglob("*")),
        )

    def beyond(self, before: ResourceSnapshot) -> dict[str, frozenset[Any]]:
        """Return what is in use here and not in `before`, by kind."""
        found = {name: getattr(self, name) - getattr(before, name) for name in self.__slots__}
        return {name: left for name, left in found.items() if left}


def left_since(
    before: ResourceSnapshot, scratch: Path, tokens: Iterable[bytes], *, seconds: float
) -> dict[str, frozenset[Any]]:
    """Return what is left after at most `seconds`: abandoned threads and the kernel need some time."""
    until = time.monotonic() + seconds
    while (left := ResourceSnapshot.now(scratch, tokens).beyond(before)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def marked_by(tokens: Iterable[bytes]) -> frozenset[int]:
    """Return the processes, except zombies, whose environment has one of the variables."""
    wanted = set(tokens)
    found: set[int] = set()
    if not wanted:
        return frozenset()
    for entry in _processes():
        with contextlib.suppress(OSError):
            if wanted & set((entry / "environ").read_bytes().split(b"\0")):
                found.add(int(entry.name))
    return frozenset(found)


def lingering() -> frozenset[int]:
    """Return the orphans that have an environment of their own."""
    found = set()
    for entry in _processes():
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes() == b"sleep\0" + LINGERING.encode() + b"\0":
                found.add(int(entry.name))
    return frozenset(found)


def _descriptors() -> Iterator[tuple[str, str]]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            yield name, os.readlink(f"/proc/self/fd/{name}")


def _shared_memory() -> Iterator[str]:
    """Yield named segments, except a browser's, and the executor's memory files that are mapped here."""
    yield from (name for name in os.listdir("/dev/shm") if not name.startswith((".org.chromium", ".com.google")))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:executor-adapter" in line:
            yield line
