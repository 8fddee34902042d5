"""How worker processes may be started, and what this system has for it.

`guardian`: forked from a small process of our own, see `pools.process`. It rests on what only Linux has. `spawn`: each
an interpreter of its own, see `pools.spawned`. Users know both as pool="process".
"""

from __future__ import annotations

import os
from typing import Literal

StartMethod = Literal["guardian", "spawn"]

HAS_GUARDIAN = all(hasattr(os, name) for name in ("pidfd_open", "eventfd", "memfd_create"))

HAS_CPU_AFFINITY = hasattr(os, "sched_setaffinity")

START_METHOD: StartMethod = "guardian" if HAS_GUARDIAN else "spawn"
"""The better of those that this system has."""


def check_start_method(method: StartMethod) -> StartMethod:
    """
    Raises:
        ValueError: this system has not what it is built on; the message names the way out.
    """
    if method == "guardian" and not HAS_GUARDIAN:
        raise ValueError("must be 'spawn' here: 'guardian' needs Linux 5.4 or later (pidfd, eventfd, memfd)")
    return method
