"""What the machine has for jobs that name their resources, and what the settings say instead."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from executor_adapter.config import Settings
from executor_adapter.job import CPU, GPU, HAS_CPU_AFFINITY, MEMORY, checked_capacity
from executor_adapter.pools import AvailableMemory
from executor_adapter.supervision import Capacity

_GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


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

    Found are the processors that this process may use, the memory that its control group or the machine has, and the
    GPUs of CUDA_VISIBLE_DEVICES or, without it, of the machine.
    """
    gpus = _gpus()
    amounts: dict[str, float] = {CPU: _processors(), GPU: len(gpus), MEMORY: _memory(settings)}
    amounts |= settings.executor.capacity or {}
    amounts |= given or {}
    count = int(amounts[GPU])
    names = gpus if count <= len(gpus) else (*gpus, *(str(n) for n in range(count) if str(n) not in gpus))
    return Capacity(amounts, names[:count])


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if HAS_CPU_AFFINITY else os.cpu_count() or 1


def _memory(settings: Settings) -> float:
    level = AvailableMemory(settings.executor.memory or "auto").read()
    return 0 if level is None else level.limit


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get(_GPU_VARIABLE)
    if visible is None:
        devices = (path.name for path in Path("/dev").glob("nvidia*"))
        return tuple(sorted(name.removeprefix("nvidia") for name in devices if re.fullmatch(r"nvidia\d+", name)))
    ids = [each.strip() for each in visible.split(",")]
    # As CUDA does: what follows an id that is none is not visible.
    end = next((place for place, each in enumerate(ids) if each in ("", "-1")), len(ids))
    return tuple(ids[:end])
