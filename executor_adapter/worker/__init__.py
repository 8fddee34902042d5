"""The worker's side of a process pool. It runs in every child process, so it imports the standard library alone.

Names are loaded when first used: a worker loads only the modules that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.worker.bond import end_with_this_process as end_with_this_process
    from executor_adapter.worker.call import PICKLE as PICKLE
    from executor_adapter.worker.call import REFERENCE as REFERENCE
    from executor_adapter.worker.call import decode_function as decode_function
    from executor_adapter.worker.context import BoundCall as BoundCall
    from executor_adapter.worker.context import JobContext as JobContext
    from executor_adapter.worker.context import current_job as current_job
    from executor_adapter.worker.context import enter_job as enter_job
    from executor_adapter.worker.context import leave_job as leave_job
    from executor_adapter.worker.context import running_job as running_job
    from executor_adapter.worker.interpreter import CALL_MAIN as CALL_MAIN
    from executor_adapter.worker.interpreter import interpreter_command as interpreter_command
    from executor_adapter.worker.presence import is_held as is_held
    from executor_adapter.worker.presence import is_held_by_process as is_held_by_process
    from executor_adapter.worker.presence import own_presence as own_presence
    from executor_adapter.worker.process import EXIT_SETUP_FAILED as EXIT_SETUP_FAILED
    from executor_adapter.worker.process import INTERRUPT as INTERRUPT
    from executor_adapter.worker.process_tree import TREE_VARIABLE as TREE_VARIABLE
    from executor_adapter.worker.process_tree import kill_below as kill_below
    from executor_adapter.worker.process_tree import kill_marked as kill_marked
    from executor_adapter.worker.process_tree import resident as resident
    from executor_adapter.worker.process_tree import tree as tree
    from executor_adapter.worker.process_tree import tree_resident as tree_resident
    from executor_adapter.worker.reporter import EXIT_SOCKET_LOST as EXIT_SOCKET_LOST
    from executor_adapter.worker.stacks import FunctionPosition as FunctionPosition
    from executor_adapter.worker.stacks import position_text as position_text
    from executor_adapter.worker.stacks import traceback_of_function as traceback_of_function
    from executor_adapter.worker.state import lasting_changes as lasting_changes
    from executor_adapter.worker.wire import lease_time as lease_time

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
