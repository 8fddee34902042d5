"""The executor that users hold: JobExecutor, the current and the default one, and what ends them.

Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.executor.calling import result_of as result_of
    from executor_adapter.executor.defaults import preload_in_workers as preload_in_workers
    from executor_adapter.executor.defaults import read_threads_from as read_threads_from
    from executor_adapter.executor.defaults import slot_limits as slot_limits
    from executor_adapter.executor.executor import JobExecutor as JobExecutor
    from executor_adapter.executor.executor import current_executor as current_executor
    from executor_adapter.executor.of_process import ending_handlers as ending_handlers
    from executor_adapter.executor.of_process import enter_executor as enter_executor
    from executor_adapter.executor.of_process import leave_executor as leave_executor
    from executor_adapter.executor.of_process import signal_watch as signal_watch
    from executor_adapter.executor.of_process import stop_tracking as stop_tracking
    from executor_adapter.executor.sentinel import sentinel_client as sentinel_client

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
