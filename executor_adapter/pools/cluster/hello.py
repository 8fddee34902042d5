"""What an agent says of itself first, and which agents a head refuses."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from executor_adapter.job import HAS_GUARDIAN

PROTOCOL = 1
"""Changes whenever a head and an agent of different versions would not understand each other."""


def hello(node: str) -> dict[str, Any]:
    """Return what the agent of this process says of itself, in a form that JSON has."""
    return {
        "node": node,
        "pid": os.getpid(),
        "protocol": PROTOCOL,
        "python": _python(),
        "missing": "" if HAS_GUARDIAN else "its system lacks pidfd, eventfd or memfd, which Linux 5.4 or newer has",
        "time": time.time(),
    }


def refusal(node: str, said: dict[str, Any]) -> str:
    """Return why an agent cannot be used; "" if it can."""
    if said["protocol"] != PROTOCOL:
        return f"node {node} has another version of prefect-executor-adapter: install the same one on both"
    if said["python"] != _python():
        return f"node {node} has Python {said['python']}, and this program {_python()}: use the same on both"
    return f"node {node} cannot run jobs: {said['missing']}" if said["missing"] else ""


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
