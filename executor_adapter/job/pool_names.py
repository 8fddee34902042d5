"""The names of the pools, and the ways in which this system can start worker processes.

`ssh`, `dask`, `ray`: processes on other machines, see `pools.cluster`.

`guardian`: workers are forked by a small process of our own, see `pools.process`; it needs what only Linux has.
`spawn`: each worker is a new interpreter, see there too. Users know both as pool="process".
"""

from __future__ import annotations

import os
from typing import Literal

PoolName = Literal["auto", "coroutine", "thread", "process", "ssh", "dask", "ray"]

PoolWithSlots = Literal["coroutine", "thread", "process", "ssh", "dask", "ray"]
"""The pools that run attempts; "auto" stands for one of two of them."""

PROCESS_POOLS = frozenset({"process", "ssh", "dask", "ray"})
"""The pools whose attempts run in processes of their own, here or on other machines."""

LEASING_POOLS = frozenset({"dask", "ray"})
"""The pools that obtain what a job needs of the nodes of a cluster, which counts it."""

StartMethod = Literal["guardian", "spawn"]

HAS_GUARDIAN = all(hasattr(os, name) for name in ("pidfd_open", "eventfd", "memfd_create"))

HAS_CPU_AFFINITY = hasattr(os, "sched_setaffinity")

START_METHOD: StartMethod = "guardian" if HAS_GUARDIAN else "spawn"
"""The better start method that this system supports."""


def check_start_method(method: StartMethod) -> StartMethod:
    """Return `method` if this system supports it.

    Raises:
        ValueError: This system lacks what it needs; the message names an alternative.
    """
    if method == "guardian" and not HAS_GUARDIAN:
        raise ValueError("must be 'spawn' here: 'guardian' needs Linux 5.4 or later (pidfd, eventfd, memfd)")
    return method
