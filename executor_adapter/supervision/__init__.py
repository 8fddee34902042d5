"""Supervision: one thread decides what happens to every job. `supervisor.Supervisor` is the place to start reading.

Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.supervision.driver import JobDriver
    from executor_adapter.supervision.futures import JobFuture
    from executor_adapter.supervision.hooks import HookedExecution
    from executor_adapter.supervision.job_scope import JobScope, UnclaimedMessages
    from executor_adapter.supervision.output_forwarding import program_output, write_line
    from executor_adapter.supervision.resources.machine import Capacity
    from executor_adapter.supervision.scheduling import SlotLimits
    from executor_adapter.supervision.stats import (
        DEFAULT_WINDOW_SECONDS,
        QUEUE_SECONDS,
        ExecutorStats,
        figures,
        mean,
        percentile,
    )
    from executor_adapter.supervision.supervisor import Supervisor
    from executor_adapter.supervision.thread import SupervisorThread
    from executor_adapter.supervision.tools.rate_limiter import ToolRequest

_HOMES = {
    "Capacity": "executor_adapter.supervision.resources.machine",
    "DEFAULT_WINDOW_SECONDS": "executor_adapter.supervision.stats",
    "ExecutorStats": "executor_adapter.supervision.stats",
    "HookedExecution": "executor_adapter.supervision.hooks",
    "JobDriver": "executor_adapter.supervision.driver",
    "JobFuture": "executor_adapter.supervision.futures",
    "JobScope": "executor_adapter.supervision.job_scope",
    "QUEUE_SECONDS": "executor_adapter.supervision.stats",
    "SlotLimits": "executor_adapter.supervision.scheduling",
    "Supervisor": "executor_adapter.supervision.supervisor",
    "SupervisorThread": "executor_adapter.supervision.thread",
    "ToolRequest": "executor_adapter.supervision.tools.rate_limiter",
    "UnclaimedMessages": "executor_adapter.supervision.job_scope",
    "figures": "executor_adapter.supervision.stats",
    "mean": "executor_adapter.supervision.stats",
    "percentile": "executor_adapter.supervision.stats",
    "program_output": "executor_adapter.supervision.output_forwarding",
    "write_line": "executor_adapter.supervision.output_forwarding",
}

__all__ = [
    "DEFAULT_WINDOW_SECONDS",
    "QUEUE_SECONDS",
    "Capacity",
    "ExecutorStats",
    "HookedExecution",
    "JobDriver",
    "JobFuture",
    "JobScope",
    "SlotLimits",
    "Supervisor",
    "SupervisorThread",
    "ToolRequest",
    "UnclaimedMessages",
    "figures",
    "mean",
    "percentile",
    "program_output",
    "write_line",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
