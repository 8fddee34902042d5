"""What the settings and the machine say where a program does not: fields of jobs, limits, slots, capacity, pools."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from executor_adapter.config import Settings, retry_policy
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.of_process import drain_all
from executor_adapter.job import (
    CPU,
    GPU,
    HAS_CPU_AFFINITY,
    MEMORY,
    PROCESS_POOLS,
    Job,
    PoolWithSlots,
    ToolLimit,
    checked_capacity,
    is_coroutine_function,
)
from executor_adapter.pools.base import WorkerPool
from executor_adapter.pools.gpus import gpu_ids, visible_gpus
from executor_adapter.pools.kinds import PoolKinds, pool_kind
from executor_adapter.pools.memory.available import AvailableMemory
from executor_adapter.pools.memory.control_groups import processor_quota
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import SlotLimits
from executor_adapter.supervision.supervisor import Supervisor

DEFAULT_SLOTS = 1_000
"""Slots of a pool whose attempts take little of this machine: coroutines, and what runs on other machines."""
DEFAULT_THREADS = 64
Initializer = tuple[Callable[..., object], tuple[Any, ...]]
"""A function that each worker process calls before its first job, and its arguments."""


# --- what other parts of the package add ---

_thread_settings: list[Callable[[], int | None]] = []
"""Settings that say how many threads an executor runs."""
_worker_preloads: list[str] = []
"""Modules that every process pool preloads, besides the configured ones."""


def read_threads_from(setting: Callable[[], int | None]) -> None:
    """Let executors that are made from now on run as many threads as this setting says, where nothing else is said."""
    _thread_settings.append(setting)


def preload_in_workers(*modules: str) -> None:
    """Make process pools that are created from now on preload these modules, besides the configured ones.

    For code that runs around functions in a worker: imported on first use, it would count towards a job's limits.
    """
    _worker_preloads.extend(modules)


# --- jobs ---


class JobDefaults:
    """Fills in a job's open fields: from its tool's section first, then from the section `job`."""

    def __init__(self, settings: Settings) -> None:
        self._general = settings.job.given()
        self._has_memory_limits = settings.executor.start_method == "guardian"
        self._of_tool = {name: tool.job.over(settings.job).given() for name, tool in settings.tools.items()}
        self.any = bool(self._general) or any(self._of_tool.values())
        """Whether there is anything to fill in: most programs have no such settings, and skip the call."""

    def fill_in(self, job: Job) -> None:
        """Set the fields that the settings name and the job does not. Calling it twice does no harm.

        Raises:
            InvalidJobError: A field of the job contradicts the settings.
        """
        defaults = self._of_tool.get(job.tool_name or "", self._general)
        later = {"retry", "soft_timeout"}
        for field, value in defaults.items():
            if field not in job.model_fields_set and field not in later and self._can_hold(job, field):
                _set(job, field, value)
        if "soft_timeout" in defaults:
            self._fill_in_soft_timeout(job, defaults["soft_timeout"])
        if "max_runtime" in defaults and job.soft_timeout is not None:
            _check_own_soft_timeout(job, defaults["max_runtime"])
        if "retry" in defaults and "retry" not in job.model_fields_set:
            _set(job, "retry", retry_policy(defaults["retry"], job.retry_attempts, job.retry_delay))
        elif (policy := job.retry) and not policy.retry_attempts and "retry_attempts" not in policy.model_fields_set:
            _set(job, "retry", policy.model_copy(update={"retry_attempts": job.retry_attempts}))

    def _fill_in_soft_timeout(self, job: Job, seconds: float | None) -> None:
        """Set soft_timeout, unless the job's own max_runtime ends it before."""
        ends_before = seconds is not None and job.max_runtime is not None and job.max_runtime <= seconds
        if "soft_timeout" not in job.model_fields_set and not ends_before and self._can_hold(job, "soft_timeout"):
            _set(job, "soft_timeout", seconds)

    def _can_hold(self, job: Job, field: str) -> bool:
        """Return whether the job's pool supports that limit; if not, a default is skipped, and a job's own refused."""
        if field == "memory_limit":
            return job.pool in PROCESS_POOLS and (job.pool != "process" or self._has_memory_limits)
        return field != "soft_timeout" or (job.pool != "coroutine" and not is_coroutine_function(job.function))


def _check_own_soft_timeout(job: Job, max_runtime: float | None) -> None:
    # Checked here because afterwards it is unknown which of the two fields came from the settings.
    soft = job.soft_timeout
    if soft is not None and max_runtime is not None and job.max_runtime == max_runtime <= soft:
        raise InvalidJobError(
            f"soft_timeout={soft} leaves no time before max_runtime={max_runtime} of the settings: "
            "give a shorter one, or a max_runtime of the job's own"
        )


def _set(job: Job, field: str, value: object) -> None:
    # As assignment does, but without validating again, for each job, what was validated with the settings.
    job.__dict__[field] = value
    job.model_fields_set.add(field)


def limits_of_tools(settings: Settings, given: Mapping[str, ToolLimit] | None) -> dict[str, ToolLimit]:
    """Return the limits of each tool: those `given`, or else its section's; each with its share that stays unused."""
    limits = {
        name: ToolLimit(max_concurrent=tool.max_concurrent, rate=tool.rate, burst=tool.burst, buffer=tool.buffer)
        for name, tool in settings.tools.items()
        if tool.max_concurrent is not None or tool.rate is not None
    } | dict(given or {})
    buffer = settings.collection.rate_limit_buffer
    return {name: replace(limit, buffer=buffer) if limit.buffer is None else limit for name, limit in limits.items()}


# --- slots and capacity ---


def slot_limits(max_workers: int | Mapping[str, int] | None) -> SlotLimits:
    """Return the slots that `max_workers` means: see JobExecutor. Names and numbers were checked before."""
    if max_workers is not None and not isinstance(max_workers, Mapping):
        return SlotLimits(total=int(max_workers))  # It may be a number of NumPy's.
    slots = dict.fromkeys(get_args(PoolWithSlots), DEFAULT_SLOTS)
    slots["process"] = math.ceil(_processors())
    slots["thread"] = next((number for read in _thread_settings if (number := read())), DEFAULT_THREADS)
    return SlotLimits(of_pool=slots | dict(max_workers or {}))


def check_capacity(given: Mapping[str, float | str] | None) -> Mapping[str, float] | None:
    """Return a capacity as numbers.

    Raises:
        ValueError: a name or an amount could never be meant.
    """
    try:
        return checked_capacity(given)
    except ValueError as error:
        raise ValueError(f"capacity: {error}") from None


def read_capacity(settings: Settings, given: Mapping[str, float] | None) -> Capacity:
    """Return what `given` says, or else the setting `executor.capacity`, or else what is found on this machine.

    Found are the processors that this process may use, within the quota of its control group, the memory that this
    group or the machine has, and the GPUs of CUDA_VISIBLE_DEVICES or, without it, of the machine.
    """
    amounts: dict[str, float] = {CPU: _processors(), GPU: len(visible_gpus()), MEMORY: _memory(settings)}
    amounts |= settings.executor.capacity or {}
    amounts |= given or {}
    return Capacity(amounts, gpu_ids(int(amounts[GPU])))


def _processors() -> float:
    count = len(os.sched_getaffinity(0)) if HAS_CPU_AFFINITY else os.cpu_count() or 1
    quota = processor_quota()
    # A job may need one: with a smaller quota it takes longer.
    return count if quota is None else max(1.0, min(count, quota))


def _memory(settings: Settings) -> float:
    level = AvailableMemory(settings.executor.memory or "auto").read()
    return 0 if level is None else level.limit


# --- pools ---


def make_pool(config: Settings, initializer: Initializer | None, name: str, supervisor: Supervisor) -> WorkerPool:
    """Return a new pool of the kind that `name` means under these settings."""
    kind: Callable[..., WorkerPool] = kinds_of(config)(name)
    max_workers = supervisor.dispatcher.limits.of(name)
    if name not in PROCESS_POOLS:
        return kind(supervisor, max_workers)
    names = {"preload", "max_jobs_per_worker", "max_rss_growth", "nice", "cpu_affinity"}
    options = config.executor.model_dump(include=names, exclude_none=True)
    options["preload"] = tuple(dict.fromkeys((*options["preload"], *_worker_preloads)))
    options["start_timeout"] = config.executor.start_timeout
    if name != "process":
        # A size is meant for this program and its workers here; a node watches what its own machine has.
        options |= {"cluster": config.cluster, "memory": config.executor.memory and "auto"}
    if name in _ENGINES:
        capacity = supervisor.dispatcher.resources.machine.capacity
        options |= {"capacity": lambda: capacity().amounts, "at_exit": drain_all}
    return kind(supervisor, max_workers, initializer=initializer, **options)


def kinds_of(config: Settings) -> PoolKinds:
    """Return the function that finds the class of a pool under these settings.

    It raises InvalidJobError where the settings lack what the pool needs.
    """

    @functools.cache
    def find(name: str) -> type[WorkerPool]:
        if (lack := lack_of_pool(config, name)) is not None:
            raise InvalidJobError(lack)
        return pool_kind(name, config.executor.start_method)

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
