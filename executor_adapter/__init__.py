"""A JobExecutor whose jobs end when they must, fail alone, retry by a policy and are always accounted for.

Names are loaded when first used: every worker process imports this package, and needs little of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor as JobExecutor
    from executor_adapter.job import Attempt as Attempt
    from executor_adapter.job import ErrorCode as ErrorCode
    from executor_adapter.job import Job as Job
    from executor_adapter.job import JobOptions as JobOptions
    from executor_adapter.job import JobResult as JobResult
    from executor_adapter.job import JobResults as JobResults
    from executor_adapter.job import JobStatus as JobStatus
    from executor_adapter.job import Observer as Observer
    from executor_adapter.job import Progress as Progress
    from executor_adapter.job import RetryDecision as RetryDecision
    from executor_adapter.job import RetryPolicy as RetryPolicy
    from executor_adapter.job import RetryRule as RetryRule
    from executor_adapter.job import ToolLimit as ToolLimit
    from executor_adapter.job import Transition as Transition
    from executor_adapter.scheduler import JobQueue as JobQueue
    from executor_adapter.supervision.futures import JobFuture as JobFuture
    from executor_adapter.worker.context import JobContext as JobContext
    from executor_adapter.worker.context import current_job as current_job

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
