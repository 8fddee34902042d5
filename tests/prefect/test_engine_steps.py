"""The steps of our task engine beside those of the installed Prefect: a step that Prefect adds must not be missed."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from prefect import task_engine
from prefect.task_engine import SyncTaskRunEngine

from executor_adapter.prefect.cancellation.flow_end import call_hooks
from executor_adapter.prefect.engine import engine, job_run, run
from executor_adapter.prefect.engine.engine import JobEngine

SAME_STEP = {
    "SyncTaskRunEngine": "_new_engine",
    "raise_if_flow_run_suspension_requested": "raise_if_suspended",  # Prefect's is in a private module.
}
"""Steps of Prefect's loop that have another name here."""

ADDED_STEPS = {
    "is_unfinished": "an error of the engine itself must not leave the task run without a final state",
    "handle_exception": "the same",
    "refuse": "the same",
    "handle_crash": "the same, when a suspended flow run stops the engine",
}
"""Steps of our loop that Prefect's does not have, with the reason."""

LEFT_OUT: dict[str, dict[str, str]] = {
    "run_context": {
        "setup_run_context": "the engine has entered it: the context of an attempt is a copy",
        "timeout": "the executor ends an attempt at `max_runtime`",
        "current_thread": "Prefect logs where it cannot time out in a thread; the executor can",
        "main_thread": "the same",
        "warning": "the same",
        "debug": "the same",
        "is_cancelled": "a retry of a cancelled flow run is refused by `JobRun.decide`",
        "CancelledError": "the same",
    },
    "call_task_fn": {"call_with_parameters": "the function is called in a pool"},
    "handle_retry": {
        "min": "the delays are those of the retry policy",
        "len": "the same",
        "clamped_poisson_interval": "the same",
        "AwaitingRetry": "made by `states.awaiting_retry`",
        "Retrying": "made by `states.retrying`, when the retry has its slot",
        "info": "logged by `_log_failure`",
        "error": "the same",
    },
    "wait_until_ready": {
        "total_seconds": "the executor waits for the delay",
        "sleep": "the same",
        "Retrying": "made by `states.retrying`",
        "Running": "a job is scheduled only for a retry",
    },
    "set_state": {
        "ValueError": "an assertion",
        "emit_task_run_state_change_event": "the reporter reports states",
    },
    "call_hooks": {
        "ValueError": "an assertion",
        "is_failed": "Crashed states are handled here, all others by Prefect",
        "get_hook_name": "the same",
        "info": "the same",
        "error": "`exception` logs with the traceback",
    },
    "handle_rollback": {"emit_task_run_state_change_event": "the reporter reports states"},
}
"""Calls in the methods of Prefect's engine that ours replaces, and that ours does not make, with the reason."""


def _calls(code: Any) -> list[str]:
    """The names of what the code calls, in the order of the source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found.sort(key=lambda node: (node.lineno, node.col_offset))
    return [_name(node.func) for node in found]


def _name(function: ast.expr) -> str:
    match function:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)):
            return name
        case _:
            return ast.unparse(function)


def test_our_loop_has_the_steps_of_prefects_in_their_order() -> None:
    """Each step of Prefect's loop is one of ours, in the same order."""
    expected = [SAME_STEP.get(step, step) for step in _calls(task_engine.run_task_sync)]
    assert [step for step in _calls(run.run_sync) if step not in ADDED_STEPS] == expected


def test_replaced_methods_leave_out_only_what_is_named() -> None:
    """A call in a method of Prefect's engine that ours replaces is made here too, or left out for a named reason."""
    made = {name for source in (engine, job_run, call_hooks) for name in _calls(source)}
    missed = {
        method: missing
        for method in _replaced_methods()
        if (missing := set(_calls(_prefects(method))) - made - LEFT_OUT.get(method, {}).keys())
    }
    assert not missed


def test_the_replaced_methods_are_known() -> None:
    """A method of Prefect's engine that ours replaces, by design or because Prefect has a new one, is in the table."""
    assert set(_replaced_methods()) == LEFT_OUT.keys()


def _prefects(method: str) -> Any:
    return inspect.unwrap(getattr(SyncTaskRunEngine, method))


def _replaced_methods() -> list[str]:
    """The methods of Prefect's engine that ours replaces, wholly or in some cases."""
    methods = [name for name, it in vars(JobEngine).items() if inspect.isfunction(it) and not name.startswith("__")]
    return [
        name for name in methods if hasattr(SyncTaskRunEngine, name) and not _only_extends(vars(JobEngine)[name], name)
    ]


def _only_extends(method: Any, name: str) -> bool:
    """Whether the method always does what Prefect's does: a statement of its own calls it, or is within its context."""
    body = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
    assert isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef)
    return any(f"super().{name}(" in ast.unparse(statement) for statement in body.body if _is_simple(statement))


def _is_simple(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr | ast.With)
