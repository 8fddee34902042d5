"""The options of a job as typed keyword arguments: the fields of Job that many calls can share, and what each may be.

Functions that take them declare `**options: Unpack[JobOptions]`, so that an editor completes them and a type checker
marks `pool="proces"`. At run time `Job` validates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import TypedDict  # Of `typing`, before Python 3.13 none could extend one of Prefect's.

from executor_adapter.job.pool_names import PoolName
from executor_adapter.job.retry import RetryPolicy


class SharedJobOptions(TypedDict, total=False):
    """The fields of a Job that all jobs of a task runner can share, beside their pool."""

    job_type: str
    tool_name: str | None
    max_runtime: float | None
    soft_timeout: float | None
    queue_timeout: float | None
    stall_timeout: float | None
    deadline: float | None
    memory_limit: int | str | None
    resources: Mapping[str, float | str] | None
    fresh_worker: bool
    keep: bool
    priority: int
    metadata: dict[str, Any]


class RepeatedJobOptions(SharedJobOptions, total=False):
    """The fields of a Job that the calls of one function can share."""

    pool: PoolName
    retry_attempts: int
    retry_delay: float
    retry: RetryPolicy | None


class JobOptions(RepeatedJobOptions, total=False):
    """The fields of a Job other than its function, its arguments and its id, as typed keyword arguments.

    A function of yours that passes options on declares `**options: Unpack[JobOptions]`. Then type checkers and editors
    know the options, and what each may be.
    """

    dedupe_key: str | None
