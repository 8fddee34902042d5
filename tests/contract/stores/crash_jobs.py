"""Job functions for hosts that are killed: each run leaves a line in a file and notices another run of its job."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive_run(run_log: str, name: str) -> Iterator[int]:
    """Yield how many runs of `name` there were before; the file `overlaps` gets its name if another one is running.

    The kernel releases the lock (flock) when the process dies that has the file open.
    """
    with (Path(run_log) / name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(run_log, "overlaps", name)
        file.seek(0)
        before = len(file.readlines())
        file.write(f"{time.time()} {os.getpid()}\n")
        file.flush()
        yield before


def note(run_log: str, file: str, text: str) -> None:
    """Append a line to a file of the run log, a directory with one file for each job."""
    with (Path(run_log) / file).open("a") as opened:
        opened.write(text + "\n")


def work(run_log: str, name: str, seconds: float) -> str:
    """Sleep."""
    with exclusive_run(run_log, name):
        time.sleep(seconds)
        return name


async def work_on_loop(run_log: str, name: str, seconds: float) -> str:
    """Sleep on the event loop."""
    with exclusive_run(run_log, name):
        await asyncio.sleep(seconds)
        return name


def fail(run_log: str, name: str, seconds: float) -> None:
    """Sleep and fail."""
    with exclusive_run(run_log, name):
        time.sleep(seconds)
        raise LookupError("on purpose")


def fail_once(run_log: str, name: str, seconds: float) -> str:
    """Sleep, and fail in the first run."""
    with exclusive_run(run_log, name) as before:
        time.sleep(seconds)
        if not before:
            raise ConnectionError("on purpose")
        return name
