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


def announce(path: str, began: float, *others: int) -> None:
    """Write when the function began, and the pids of its tree, so that whoever finds the file finds all of it."""
    Path(path + ".new").write_text(" ".join(map(str, (began, os.getpid(), *others))))
    os.rename(path + ".new", path)


def hang(path: str) -> None:
    announce(path, now())
    time.sleep(60)


def hang_with_child(path: str) -> None:
    """A tree of two."""
    began = now()
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    announce(path, began, child)
    time.sleep(60)


def hang_deaf(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce(path, now())
    time.sleep(60)


def stick_in_c() -> None:
    """Out of reach for a minute, without the GIL."""
    ctypes.CDLL(None).sleep(60)
