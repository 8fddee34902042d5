"""Where an attempt runs: coroutines, threads, processes, each behind `base.WorkerPool`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from executor_adapter.job.pool_names import START_METHOD, StartMethod

if TYPE_CHECKING:
    from executor_adapter.pools.base import WorkerPool

_KINDS = {
    "coroutine": "executor_adapter.pools.in_process.coroutine:CoroutinePool",
    "guardian": "executor_adapter.pools.guardian.pool:ProcessPool",
    "spawn": "executor_adapter.pools.spawned.pool:SpawnedPool",
    "thread": "executor_adapter.pools.in_process.thread:ThreadPool",
}

PoolKinds = Callable[[str], "type[WorkerPool]"]
"""Gives the class of the pool with that name, imported when first asked for; a KeyError where there is no such pool."""


@functools.cache
def pool_kinds(start_method: StartMethod = START_METHOD) -> PoolKinds:
    """The pools there are, where processes are started so."""

    @functools.cache
    def kind_of(name: str) -> type[WorkerPool]:
        module, _, qualname = _KINDS[start_method if name == "process" else name].partition(":")
        kind: type[WorkerPool] = getattr(importlib.import_module(module), qualname)
        return kind

    return kind_of
