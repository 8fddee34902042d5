"""Supervision: one thread decides what happens to every job. `supervisor.Supervisor` is the place to start reading."""

from __future__ import annotations

from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.limits import near_limits
from executor_adapter.supervision.messages import JobScope, UnclaimedMessages, program_output, write_line
from executor_adapter.supervision.outcome import (
    DEFAULT_WINDOW_SECONDS,
    QUEUE_SECONDS,
    ExecutorStats,
    StopReason,
    failed_as,
    figures,
    mean,
    percentile,
)
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import SlotLimits
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.supervision.thread import SupervisorThread
from executor_adapter.supervision.tools import ToolRequest

__all__ = [
    "DEFAULT_WINDOW_SECONDS",
    "QUEUE_SECONDS",
    "Capacity",
    "ExecutorStats",
    "JobDriver",
    "JobFuture",
    "JobScope",
    "SlotLimits",
    "StopReason",
    "Supervisor",
    "SupervisorThread",
    "ToolRequest",
    "UnclaimedMessages",
    "failed_as",
    "figures",
    "mean",
    "near_limits",
    "percentile",
    "program_output",
    "write_line",
]
