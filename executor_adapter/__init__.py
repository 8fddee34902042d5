"""A JobExecutor whose jobs end when they must, fail alone, retry by a policy and are always accounted for.

Names are loaded when first used: every worker process imports this package and needs little of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor_adapter.executor.executor import JobExecutor
    from executor_adapter.job.model import Job
    from executor_adapter.job.results import Attempt, JobResult
    from executor_adapter.job.retry import RetryDecision, RetryPolicy, RetryRule
    from executor_adapter.job.status import ErrorCode, JobStatus
    from executor_adapter.job.transition import Transition
    from executor_adapter.scheduler.job_queue import JobQueue
    from executor_adapter.supervision.futures import JobFuture
    from executor_adapter.worker.context import JobContext, current_job

_HOMES = {
    "Attempt": "job.results",
    "ErrorCode": "job.status",
    "Job": "job.model",
    "JobContext": "worker.context",
    "JobExecutor": "executor.executor",
    "JobFuture": "supervision.futures",
    "JobQueue": "scheduler.job_queue",
    "JobResult": "job.results",
    "JobStatus": "job.status",
    "RetryDecision": "job.retry",
    "RetryPolicy": "job.retry",
    "RetryRule": "job.retry",
    "Transition": "job.transition",
    "current_job": "worker.context",
}

__all__ = [
    "Attempt",
    "ErrorCode",
    "Job",
    "JobContext",
    "JobExecutor",
    "JobFuture",
    "JobQueue",
    "JobResult",
    "JobStatus",
    "RetryDecision",
    "RetryPolicy",
    "RetryRule",
    "Transition",
    "current_job",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
