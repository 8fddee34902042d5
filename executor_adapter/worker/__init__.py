"""The worker's side of a process pool. It runs in every child process, so it imports the standard library alone.

Names are loaded when first used: a worker loads only the modules that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.worker.bond import end_with_this_process
    from executor_adapter.worker.call import PICKLE, REFERENCE, decode_function
    from executor_adapter.worker.context import BoundCall, JobContext, current_job, enter_job, leave_job, running_job
    from executor_adapter.worker.interpreter import interpreter_command
    from executor_adapter.worker.presence import is_held, is_held_by_process, own_presence
    from executor_adapter.worker.process import EXIT_SETUP_FAILED, INTERRUPT
    from executor_adapter.worker.process_tree import (
        TREE_VARIABLE,
        kill_below,
        kill_marked,
        resident,
        tree,
        tree_resident,
    )
    from executor_adapter.worker.reporter import EXIT_SOCKET_LOST
    from executor_adapter.worker.spawned import BOOTSTRAP
    from executor_adapter.worker.stacks import FunctionPosition, position_text, traceback_of_function
    from executor_adapter.worker.state import lasting_changes
    from executor_adapter.worker.wire import lease_time

_HOMES = {
    "BOOTSTRAP": "executor_adapter.worker.spawned",
    "BoundCall": "executor_adapter.worker.context",
    "EXIT_SETUP_FAILED": "executor_adapter.worker.process",
    "EXIT_SOCKET_LOST": "executor_adapter.worker.reporter",
    "FunctionPosition": "executor_adapter.worker.stacks",
    "INTERRUPT": "executor_adapter.worker.process",
    "JobContext": "executor_adapter.worker.context",
    "PICKLE": "executor_adapter.worker.call",
    "decode_function": "executor_adapter.worker.call",
    "REFERENCE": "executor_adapter.worker.call",
    "TREE_VARIABLE": "executor_adapter.worker.process_tree",
    "current_job": "executor_adapter.worker.context",
    "end_with_this_process": "executor_adapter.worker.bond",
    "enter_job": "executor_adapter.worker.context",
    "interpreter_command": "executor_adapter.worker.interpreter",
    "is_held": "executor_adapter.worker.presence",
    "is_held_by_process": "executor_adapter.worker.presence",
    "kill_below": "executor_adapter.worker.process_tree",
    "kill_marked": "executor_adapter.worker.process_tree",
    "lease_time": "executor_adapter.worker.wire",
    "leave_job": "executor_adapter.worker.context",
    "lasting_changes": "executor_adapter.worker.state",
    "own_presence": "executor_adapter.worker.presence",
    "position_text": "executor_adapter.worker.stacks",
    "resident": "executor_adapter.worker.process_tree",
    "running_job": "executor_adapter.worker.context",
    "traceback_of_function": "executor_adapter.worker.stacks",
    "tree": "executor_adapter.worker.process_tree",
    "tree_resident": "executor_adapter.worker.process_tree",
}

__all__ = [
    "BOOTSTRAP",
    "EXIT_SETUP_FAILED",
    "EXIT_SOCKET_LOST",
    "INTERRUPT",
    "PICKLE",
    "REFERENCE",
    "TREE_VARIABLE",
    "BoundCall",
    "FunctionPosition",
    "JobContext",
    "current_job",
    "decode_function",
    "end_with_this_process",
    "enter_job",
    "interpreter_command",
    "is_held",
    "is_held_by_process",
    "kill_below",
    "kill_marked",
    "lasting_changes",
    "lease_time",
    "leave_job",
    "own_presence",
    "position_text",
    "resident",
    "running_job",
    "traceback_of_function",
    "tree",
    "tree_resident",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
