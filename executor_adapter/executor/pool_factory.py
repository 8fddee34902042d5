"""Makes the pools of an executor and its memory guard from its settings."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from executor_adapter.config import Settings
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import PROCESS_POOLS
from executor_adapter.pools import AvailableMemory, MemoryGuard, PoolKinds, SshHost, WorkerPool, pool_kinds
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


def make_pool(config: Settings, initializer: Initializer | None, name: str, supervisor: Supervisor) -> WorkerPool:
    """Return a new pool of the kind that `name` means under these settings."""
    kind: Callable[..., WorkerPool] = kinds_of(config)(name)
    max_workers = supervisor.dispatcher.limits.of(name)
    if name not in PROCESS_POOLS:
        return kind(supervisor, max_workers)
    names = {"preload", "max_jobs_per_worker", "max_rss_growth", "nice", "cpu_affinity"}
    options = config.executor.model_dump(include=names, exclude_none=True)
    options["preload"] = tuple(dict.fromkeys((*options["preload"], *worker_preloads)))
    options["start_timeout"] = config.executor.start_timeout
    if name != "process":
        options |= _cluster_options(name, config)
    return kind(supervisor, max_workers, initializer=initializer, **options)


def _cluster_options(name: str, config: Settings) -> dict[str, Any]:
    cluster = config.cluster
    # A size is meant for this program and its workers here; a node watches what its own machine has.
    memory = None if config.executor.memory is None else "auto"
    options: dict[str, Any] = {"lost_after": cluster.lost_after, "node_timeout": cluster.node_timeout, "memory": memory}
    if name == "ssh":
        hosts = [SshHost(**host.model_dump()) for host in cluster.ssh.hosts]
        options |= {"hosts": hosts, "ssh_command": cluster.ssh.command}
    else:
        engine = cluster.dask if name == "dask" else cluster.ray
        options |= {**engine.model_dump(), "lease_idle": cluster.lease_idle}
    return options


def kinds_of(config: Settings) -> PoolKinds:
    """Return the function that finds the class of a pool under these settings.

    It raises InvalidJobError where the settings lack what the pool needs.
    """
    kind_of = pool_kinds(config.executor.start_method)

    @functools.cache
    def find(name: str) -> type[WorkerPool]:
        if (lack := lack_of_pool(config, name)) is not None:
            raise InvalidJobError(lack)
        return kind_of(name)

    return find


def lack_of_pool(config: Settings, name: str) -> str | None:
    """Return in words what the pool called `name` needs and is not here; None where nothing is missing."""
    if name == "ssh" and not config.cluster.ssh.hosts:
        return "pool='ssh' needs hosts: set cluster.ssh.hosts in the configuration"
    if name in _ENGINES and not is_installed(_ENGINES[name]):
        return f"pool={name!r} needs an extra: pip install 'prefect-executor-adapter[{name}]'"
    return None


_ENGINES = {"dask": "distributed", "ray": "ray"}
"""The module of the engine that a pool needs."""


@functools.cache
def is_installed(module: str) -> bool:
    """Return whether a module can be imported."""
    return importlib.util.find_spec(module) is not None
