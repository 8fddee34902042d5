"""The vocabulary: jobs, their states, results and retry policies, and the checks of what users give."""

from __future__ import annotations

from executor_adapter.job.fields import MemoryLimit
from executor_adapter.job.functions import (
    check_arguments,
    function_key,
    function_reference,
    is_coroutine_function,
    is_generator_function,
    resolve,
)
from executor_adapter.job.html import html_of_jobs, html_table
from executor_adapter.job.ids import uuid7
from executor_adapter.job.live_state import JobState
from executor_adapter.job.mistakes import Model, call_text, did_you_mean, nearest, rule_text, shown
from executor_adapter.job.model import NEW_ID_HINT, Job, check_are_jobs, check_is_job, check_is_new
from executor_adapter.job.options import JobOptions, MapOptions, RepeatedJobOptions, SharedJobOptions
from executor_adapter.job.pool_names import (
    HAS_CPU_AFFINITY,
    HAS_GUARDIAN,
    LEASING_POOLS,
    PROCESS_POOLS,
    START_METHOD,
    PoolName,
    PoolWithSlots,
    StartMethod,
    check_start_method,
)
from executor_adapter.job.quarantine import MAX_QUARANTINED, Quarantine
from executor_adapter.job.rerun import RETRY_OF, changed_retry, rerun
from executor_adapter.job.resources import (
    CPU,
    GPU,
    MEMORY,
    UNITS,
    CapacityField,
    Resources,
    Shape,
    amount_text,
    checked_capacity,
    checked_resources,
    shape_of,
    shape_text,
    units_of,
)
from executor_adapter.job.results import ERROR_OF_ATTEMPT, Attempt, JobResult, JobResults, Progress
from executor_adapter.job.retry import CRASHES, RetryDecision, RetryPolicy, RetryRule, decide, limit_attempts
from executor_adapter.job.status import TERMINAL, ErrorCode, JobStatus
from executor_adapter.job.text import size_text, storable
from executor_adapter.job.tool_limit import ToolLimit
from executor_adapter.job.transition import LimitObserver, NearLimit, Observer, Transition
from executor_adapter.job.validation import (
    Count,
    Number,
    Seconds,
    check_age,
    check_count,
    check_max_workers,
    check_timeout,
)

__all__ = [
    "CPU",
    "CRASHES",
    "ERROR_OF_ATTEMPT",
    "GPU",
    "HAS_CPU_AFFINITY",
    "HAS_GUARDIAN",
    "LEASING_POOLS",
    "MAX_QUARANTINED",
    "MEMORY",
    "NEW_ID_HINT",
    "PROCESS_POOLS",
    "RETRY_OF",
    "START_METHOD",
    "TERMINAL",
    "UNITS",
    "Attempt",
    "CapacityField",
    "Count",
    "ErrorCode",
    "Job",
    "JobOptions",
    "JobResult",
    "JobResults",
    "JobState",
    "JobStatus",
    "LimitObserver",
    "MapOptions",
    "MemoryLimit",
    "Model",
    "NearLimit",
    "Number",
    "Observer",
    "PoolName",
    "PoolWithSlots",
    "Progress",
    "Quarantine",
    "RepeatedJobOptions",
    "Resources",
    "RetryDecision",
    "RetryPolicy",
    "RetryRule",
    "Seconds",
    "Shape",
    "SharedJobOptions",
    "StartMethod",
    "ToolLimit",
    "Transition",
    "amount_text",
    "call_text",
    "changed_retry",
    "check_age",
    "check_are_jobs",
    "check_arguments",
    "check_count",
    "check_is_job",
    "check_is_new",
    "check_max_workers",
    "check_start_method",
    "check_timeout",
    "checked_capacity",
    "checked_resources",
    "decide",
    "did_you_mean",
    "function_key",
    "function_reference",
    "html_of_jobs",
    "html_table",
    "is_coroutine_function",
    "is_generator_function",
    "limit_attempts",
    "nearest",
    "rerun",
    "resolve",
    "rule_text",
    "shape_of",
    "shape_text",
    "shown",
    "size_text",
    "storable",
    "units_of",
    "uuid7",
]
