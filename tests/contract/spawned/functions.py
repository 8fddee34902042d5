"""What the jobs of spawned workers do, beside what those of the guardian's do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.contract.process_pool.functions import announce


def leave_child(path: str, then: Callable[[], Any] | None = None) -> None:
    """Start a process in the worker's group, that ignores SIGTERM; write its pid; then act, or wait."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    announce(path, str(child.pid))
    if then is None:
        time.sleep(60)
    else:
        then()
