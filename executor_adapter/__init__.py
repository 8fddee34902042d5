"""A JobExecutor whose jobs end when they must, fail alone, retry by a policy and are always accounted for.

Names are loaded when first used: every worker process imports this package, and needs little of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor
    from executor_adapter.job import (
        Attempt,
        ErrorCode,
        Job,
        JobOptions,
        JobResult,
        JobResults,
        JobStatus,
        Observer,
        Progress,
        RetryDecision,
        RetryPolicy,
        RetryRule,
        ToolLimit,
        Transition,
    )
    from executor_adapter.scheduler import JobQueue
    from executor_adapter.supervision import JobFuture
    from executor_adapter.worker import JobContext, current_job

_NAMES = {
    "executor_adapter.executor": "JobExecutor",
    "executor_adapter.job": (
        "Attempt ErrorCode Job JobOptions JobResult JobResults JobStatus Observer Progress RetryDecision "
        "RetryPolicy RetryRule ToolLimit Transition"
    ),
    "executor_adapter.scheduler": "JobQueue",
    "executor_adapter.supervision": "JobFuture",
    "executor_adapter.worker": "JobContext current_job",
}

__all__ = [
    "Attempt",
    "ErrorCode",
    "Job",
    "JobContext",
    "JobExecutor",
    "JobFuture",
    "JobOptions",
    "JobQueue",
    "JobResult",
    "JobResults",
    "JobStatus",
    "Observer",
    "Progress",
    "RetryDecision",
    "RetryPolicy",
    "RetryRule",
    "ToolLimit",
    "Transition",
    "current_job",
]

__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
