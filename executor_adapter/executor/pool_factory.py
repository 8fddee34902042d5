"""Makes the pools of an executor and its memory guard from its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from executor_adapter.config import Settings
from executor_adapter.pools import AvailableMemory, MemoryGuard, WorkerPool, pool_kinds
from executor_adapter.supervision import Supervisor

Initializer = tuple[Callable[..., object], tuple[Any, ...]]
"""A function that each worker process calls before its first job, and its arguments."""

worker_preloads: list[str] = []
"""Modules that every process pool preloads, besides the configured ones."""


def preload_in_workers(*modules: str) -> None:
    """Make process pools that are created from now on preload these modules, besides the configured ones.

    For code that runs around functions in a worker: imported on first use, it would count towards a job's limits.
    """
    worker_preloads.extend(modules)


def make_memory_guard(config: Settings) -> MemoryGuard | None:
    """Return the guard that the setting `executor.memory` asks for; None if it is null."""
    return None if config.executor.memory is None else MemoryGuard(AvailableMemory(config.executor.memory))


def make_pool(
    max_workers: int, config: Settings, initializer: Initializer | None, name: str, supervisor: Supervisor
) -> WorkerPool:
    """Return a new pool of the kind that `name` means under these settings."""
    kind: Callable[..., WorkerPool] = pool_kinds(config.executor.start_method)(name)
    if name != "process":
        return kind(supervisor, max_workers)
    names = {"preload", "max_jobs_per_worker", "max_rss_growth", "nice", "cpu_affinity"}
    options = config.executor.model_dump(include=names, exclude_none=True)
    options["preload"] = tuple(dict.fromkeys((*options["preload"], *worker_preloads)))
    options["start_timeout"] = config.executor.start_timeout
    return kind(supervisor, max_workers, initializer=initializer, **options)
