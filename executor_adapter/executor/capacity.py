"""What the machine has for jobs that name their resources, and what the settings say instead."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import get_args

from executor_adapter.config import Settings
from executor_adapter.job import CPU, GPU, HAS_CPU_AFFINITY, MEMORY, PoolWithSlots, checked_capacity
from executor_adapter.pools import AvailableMemory, gpu_ids, processor_quota, visible_gpus
from executor_adapter.supervision import Capacity, SlotLimits

DEFAULT_SLOTS = 1_000
"""Slots of a pool whose attempts take little of this machine: coroutines, and what runs on other machines."""
DEFAULT_THREADS = 64

_thread_settings: list[Callable[[], int | None]] = []


def read_threads_from(setting: Callable[[], int | None]) -> None:
    """Let executors that are made from now on run as many threads as this setting says, where nothing else is said."""
    _thread_settings.append(setting)


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
