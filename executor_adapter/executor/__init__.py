"""The executor that users hold: JobExecutor, the current and the default one, and what ends them."""

from __future__ import annotations

from executor_adapter.executor.calling import result_of
from executor_adapter.executor.defaults import preload_in_workers, read_threads_from, slot_limits
from executor_adapter.executor.executor import JobExecutor, current_executor
from executor_adapter.executor.of_process import (
    ending_handlers,
    enter_executor,
    leave_executor,
    signal_watch,
    stop_tracking,
)
from executor_adapter.executor.sentinel import sentinel_client

__all__ = [
    "JobExecutor",
    "current_executor",
    "ending_handlers",
    "enter_executor",
    "leave_executor",
    "preload_in_workers",
    "read_threads_from",
    "result_of",
    "sentinel_client",
    "signal_watch",
    "slot_limits",
    "stop_tracking",
]
