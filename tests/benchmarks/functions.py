"""What benchmarks run, in our pools and in others; importable in a worker."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any


def nothing() -> None: ...


async def nothing_on_loop() -> None: ...


def echo(value: Any) -> Any:
    return value


def now() -> float:
    """When it was called, by the clock that all processes share."""
    return time.monotonic()


def announce(path: str, *pids: int) -> None:
    """Write when it was called, and the pids of the tree, so that whoever finds the file finds all of it."""
    Path(path + ".new").write_text(" ".join(map(str, (time.monotonic(), os.getpid(), *pids))))
    os.rename(path + ".new", path)


def hang(path: str) -> None:
    announce(path)
    time.sleep(60)


def hang_with_child(path: str) -> None:
    """A tree of two."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    announce(path, child)
    time.sleep(60)


def hang_deaf(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce(path)
    time.sleep(60)


def stick_in_c() -> None:
    """Out of reach for a minute, without the GIL."""
    ctypes.CDLL(None).sleep(60)
