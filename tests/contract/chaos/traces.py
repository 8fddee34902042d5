"""What a storm may not leave behind: processes, threads, descriptors, shared memory, temporary files."""

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
class Traces:
    """What there is now of the things that an executor makes. `scratch`: where temporary files would lie."""

    processes: frozenset[int]
    threads: frozenset[str]
    descriptors: frozenset[tuple[str, str]]
    shared: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls, scratch: Path, tokens: Iterable[bytes] = ()) -> Traces:
        gc.collect()
        return cls(
            processes=frozenset(children(os.getpid())) | lingering() | marked_by(tokens),
            threads=frozenset(f"{thread.name} {thread.ident}" for thread in threading.enumerate()),
            descriptors=frozenset(_descriptors()),
            shared=frozenset(_shared_memory()),
            files=frozenset(str(path) for path in scratch.rglob("*")),
        )

    def beyond(self, before: Traces) -> dict[str, frozenset[Any]]:
        """What is here and was not before, by kind."""
        found = {name: getattr(self, name) - getattr(before, name) for name in self.__slots__}
        return {name: left for name, left in found.items() if left}


def left_since(before: Traces, scratch: Path, tokens: Iterable[bytes], *, seconds: float) -> dict[str, frozenset[Any]]:
    """What is left after at most `seconds`: written-off threads end by themselves, the kernel frees as it can."""
    until = time.monotonic() + seconds
    while (left := Traces.now(scratch, tokens).beyond(before)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def marked_by(tokens: Iterable[bytes]) -> frozenset[int]:
    """The processes, zombies apart, whose environment has one of the variables."""
    wanted = set(tokens)
    found = set()
    for entry in _processes():
        with contextlib.suppress(OSError):
            if wanted & set((entry / "environ").read_bytes().split(b"\0")):
                found.add(int(entry.name))
    return frozenset(found)


def lingering() -> frozenset[int]:
    """The orphans that left their environment behind."""
    found = set()
    for entry in _processes():
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes() == b"sleep\0" + LINGERING.encode() + b"\0":
                found.add(int(entry.name))
    return frozenset(found)


def _descriptors() -> Iterator[tuple[str, str]]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists
            yield name, os.readlink(f"/proc/self/fd/{name}")


def _shared_memory() -> Iterator[str]:
    """Named segments, and memory files of ours that are mapped here; a browser's are none of ours."""
    yield from (name for name in os.listdir("/dev/shm") if not name.startswith((".org.chromium", ".com.google")))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:executor-adapter" in line:
            yield line
