"""What the jobs of hosts that are killed do: each run leaves a trace, and finds out whether another is under way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(ledger: str, name: str) -> Iterator[int]:
    """Give how many runs of `name` there were before; whoever finds another one under way says so in `overlaps`.

    Such a lock (flock) belongs to the open file, and the kernel lets go of it when its process dies.
    """
    with (Path(ledger) / name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(ledger, "overlaps", name)
        file.seek(0)
        before = len(file.readlines())
        file.write(f"{time.time()} {os.getpid()}\n")
        file.flush()
        yield before


def note(ledger: str, file: str, text: str) -> None:
    with (Path(ledger) / file).open("a") as opened:
        opened.write(text + "\n")


def work(ledger: str, name: str, seconds: float) -> str:
    with alone(ledger, name):
        time.sleep(seconds)
        return name


async def work_on_loop(ledger: str, name: str, seconds: float) -> str:
    with alone(ledger, name):
        await asyncio.sleep(seconds)
        return name


def fail(ledger: str, name: str, seconds: float) -> None:
    with alone(ledger, name):
        time.sleep(seconds)
        raise LookupError("on purpose")


def fail_once(ledger: str, name: str, seconds: float) -> str:
    with alone(ledger, name) as before:
        time.sleep(seconds)
        if not before:
            raise ConnectionError("on purpose")
        return name
