"""The executor that users hold: JobExecutor, the current and the default one, and what ends them."""

from __future__ import annotations

from executor_adapter.executor.capacity import read_threads_from, slot_limits
from executor_adapter.executor.current import enter_executor, leave_executor
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.executor.mapping import result_of
from executor_adapter.executor.pool_factory import preload_in_workers
from executor_adapter.executor.registry import stop_tracking
from executor_adapter.executor.sentinel import sentinel_client
from executor_adapter.executor.signals import ending_handlers, signal_watch

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
