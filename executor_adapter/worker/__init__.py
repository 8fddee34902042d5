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

_NAMES = {
    ".bond": "end_with_this_process",
    ".call": "PICKLE REFERENCE decode_function",
    ".context": "BoundCall JobContext current_job enter_job leave_job running_job",
    ".interpreter": "interpreter_command",
    ".presence": "is_held is_held_by_process own_presence",
    ".process": "EXIT_SETUP_FAILED INTERRUPT",
    ".process_tree": "TREE_VARIABLE kill_below kill_marked resident tree tree_resident",
    ".reporter": "EXIT_SOCKET_LOST",
    ".spawned": "BOOTSTRAP",
    ".stacks": "FunctionPosition position_text traceback_of_function",
    ".state": "lasting_changes",
    ".wire": "lease_time",
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

__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
