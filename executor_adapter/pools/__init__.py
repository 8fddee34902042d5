"""Where an attempt runs: coroutines, threads, processes, each behind `base.WorkerPool`."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor_adapter.pools.base import WorkerPool

_KINDS = {
    "coroutine": "executor_adapter.pools.coroutine:CoroutinePool",
    "process": "executor_adapter.pools.process:ProcessPool",
    "thread": "executor_adapter.pools.thread:ThreadPool",
}

POOL_NAMES = tuple(_KINDS)


@functools.cache
def pool_kind(name: str) -> type[WorkerPool]:
    """The class of a pool, imported when first asked for.

    Raises:
        KeyError: there is no such pool.
    """
    module, _, qualname = _KINDS[name].partition(":")
    kind: type[WorkerPool] = getattr(importlib.import_module(module), qualname)
    return kind
