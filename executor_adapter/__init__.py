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

_HOMES = {
    "Attempt": "executor_adapter.job",
    "ErrorCode": "executor_adapter.job",
    "Job": "executor_adapter.job",
    "JobContext": "executor_adapter.worker",
    "JobExecutor": "executor_adapter.executor",
    "JobFuture": "executor_adapter.supervision",
    "JobOptions": "executor_adapter.job",
    "JobQueue": "executor_adapter.scheduler",
    "JobResult": "executor_adapter.job",
    "JobResults": "executor_adapter.job",
    "JobStatus": "executor_adapter.job",
    "Observer": "executor_adapter.job",
    "Progress": "executor_adapter.job",
    "RetryDecision": "executor_adapter.job",
    "RetryPolicy": "executor_adapter.job",
    "RetryRule": "executor_adapter.job",
    "ToolLimit": "executor_adapter.job",
    "Transition": "executor_adapter.job",
    "current_job": "executor_adapter.worker",
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

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
