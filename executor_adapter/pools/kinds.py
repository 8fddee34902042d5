"""Finds the pools by their names; each is imported when it is first used."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from executor_adapter.job import START_METHOD, StartMethod

if TYPE_CHECKING:
    from executor_adapter.pools.base import WorkerPool

_KINDS = {
    "coroutine": "executor_adapter.pools.in_process.coroutine:CoroutinePool",
    "dask": "executor_adapter.pools.cluster.engines.dask:DaskPool",
    "guardian": "executor_adapter.pools.process.launch_guardian:GuardianPool",
    "ray": "executor_adapter.pools.cluster.engines.ray:RayPool",
    "ssh": "executor_adapter.pools.cluster.ssh:SshPool",
    "spawn": "executor_adapter.pools.process.launch_spawn:SpawnPool",
    "thread": "executor_adapter.pools.in_process.thread:ThreadPool",
}
"""The class of each pool. The process pool is listed by its start methods."""

PoolKinds = Callable[[str], "type[WorkerPool]"]
"""Returns the class of the pool with a name. Raises KeyError for an unknown name."""


@functools.cache
def pool_kind(name: str, start_method: StartMethod = START_METHOD) -> type[WorkerPool]:
    """Return the class of the pool with a name, whose module is imported at the first call.

    Raises:
        KeyError: there is no such pool.
    """
    module, _, qualname = _KINDS[start_method if name == "process" else name].partition(":")
    kind: type[WorkerPool] = getattr(importlib.import_module(module), qualname)
    return kind
