"""Functions of jobs for spawned workers only."""

from __future__ import annotations

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
