"""Functions of jobs that show what spawned workers do."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.contract.process_pool.functions import announce


def leave_child(path: str, then: Callable[[], Any] | None = None) -> None:
    """Start a process that ignores SIGTERM in the worker's group, write its pid, then call `then` or wait."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    announce(path, str(child.pid))
    if then is None:
        time.sleep(60)
    else:
        then()


held: list[object] = []


def take_descriptors(size: int) -> int:
    """Hold so many bytes and all descriptors that the system gives; return their number."""
    held.append(bytearray(b"x") * size)
    taken = 0
    with contextlib.suppress(OSError):
        while True:
            held.append(os.dup(1))
            taken += 1
    return taken
