"""The functions that benchmarks run in our pools and in others. Workers can import them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any


def nothing() -> None:
    """Do nothing."""


async def nothing_on_loop() -> None:
    """Do nothing, in a coroutine."""


def echo(value: Any) -> Any:
    """Return the argument."""
    return value


def now() -> float:
    """Return the time on the clock that all processes share."""
    return time.monotonic()


def announce(path: str, began: float, *others: int) -> None:
    """Write the start time and the pids of the tree to a file, atomically."""
    Path(path + ".new").write_text(" ".join(map(str, (began, os.getpid(), *others))))
    os.rename(path + ".new", path)


def hang(path: str) -> None:
    """Sleep for a minute."""
    announce(path, now())
    time.sleep(60)


def hang_with_child(path: str) -> None:
    """Start a child, and sleep for a minute in both."""
    began = now()
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    announce(path, began, child)
    time.sleep(60)


def hang_ignoring_sigterm(path: str) -> None:
    """Sleep for a minute and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce(path, now())
    time.sleep(60)


def stick_in_c() -> None:
    """Sleep for a minute in C, without the GIL, where no exception can reach the thread."""
    ctypes.CDLL(None).sleep(60)


def sleep_and_note(folder: str, seconds: float) -> None:
    """Make a file in the folder, and return after so many seconds."""
    Path(folder, uuid.uuid4().hex).touch()
    time.sleep(seconds)
