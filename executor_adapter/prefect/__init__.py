"""The only part that imports Prefect: jobs as task runs, and every state of theirs in the Prefect UI.

Names are loaded when first used: a worker process imports this package for `child` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor_adapter.prefect.job_task import JobTask, job_task
    from executor_adapter.prefect.reconcile import ReconcileReport, wait_until_recorded

_HOMES = {
    "JobTask": "job_task",
    "ReconcileReport": "reconcile",
    "job_task": "job_task",
    "wait_until_recorded": "reconcile",
}

__all__ = ["PRELOAD", "JobTask", "ReconcileReport", "job_task", "wait_until_recorded"]

PRELOAD = ("executor_adapter.prefect.child", "prefect.main")
"""What a worker needs for a job task: 0.8 s to import, so best imported once, before workers are forked."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
