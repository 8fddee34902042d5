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
"""Returns the class of the pool with a name, and imports it at the first call. Raises KeyError for an unknown name."""


@functools.cache
def pool_kinds(start_method: StartMethod = START_METHOD) -> PoolKinds:
    """Return the function that finds pools by name, with the process pool of the given start method."""

    @functools.cache
    def kind_of(name: str) -> type[WorkerPool]:
        module, _, qualname = _KINDS[start_method if name == "process" else name].partition(":")
        kind: type[WorkerPool] = getattr(importlib.import_module(module), qualname)
        return kind

    return kind_of
