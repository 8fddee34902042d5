"""Describes how a worker died, as the error of the job that it was running."""

from __future__ import annotations

import signal

from executor_adapter.exceptions import MemoryLimitError, WorkerCrashedError
from executor_adapter.job import size_text
from executor_adapter.pools.base import Assignment
from executor_adapter.worker import EXIT_SETUP_FAILED, EXIT_SOCKET_LOST


def record_exit(assignment: Assignment, returncode: int) -> None:
    """Record on the assignment how its worker exited; the number is that of `subprocess.Popen.returncode`."""
    if returncode >= 0:
        assignment.exit_code = returncode
    else:
        assignment.exit_signal = -returncode


def crash_error(
    assignment: Assignment, output_tail: str, *, was_ready: bool, cause: WorkerCrashedError | None = None
) -> WorkerCrashedError:
    """Return the error of an assignment whose worker died: `cause` if this process knows it, else how it exited."""
    error = cause or WorkerCrashedError(_describe(assignment, was_ready))
    error.exit_code = assignment.exit_code
    error.exit_signal = assignment.exit_signal
    error.output_tail = output_tail
    return error


def kernel_kill_error(pid: int | None, group: str | None) -> WorkerCrashedError | None:
    """Return the error of a worker that died of a SIGKILL which this process did not send; None if nothing is known.

    `group`: see `OomKills.claim`.
    """
    if group is None:
        return None
    if not group:
        return WorkerCrashedError(
            f"worker {pid} was killed by SIGKILL, and not by the kernel: that has killed no process of its control "
            "group for lack of memory"
        )
    return MemoryLimitError(
        f"worker {pid} was killed by the kernel, because memory ran out (an OOM kill in the control group {group}): "
        "give its jobs a memory_limit, or run fewer at once"
    )


def memory_error(assignment: Assignment, used: int) -> MemoryLimitError:
    """Return the error of an assignment whose process tree holds more than its memory_limit."""
    return MemoryLimitError(
        f"its process tree held {size_text(used)}, more than memory_limit={size_text(assignment.memory_limit or 0)}: "
        "raise it, or do less at once"
    )


def _describe(assignment: Assignment, was_ready: bool) -> str:
    worker = "the worker" if assignment.pid is None else f"worker {assignment.pid}"
    if not was_ready:
        return f"{worker} {_exit(assignment)} before it was ready: see output_tail, and the pool's initializer"
    return f"{worker} {_exit(assignment)} while it ran the function"


def _exit(assignment: Assignment) -> str:
    if assignment.exit_signal is not None:
        # Whoever kills a worker in this program names the cause, so it was somebody else.
        others = " (not by this executor: by somebody else, or by the kernel, which does so when memory runs out)"
        hint = others if assignment.exit_signal == signal.SIGKILL else ""
        return f"was killed by {_signal_name(assignment.exit_signal)}{hint}"
    meaning = {EXIT_SOCKET_LOST: ": the function closed its socket", EXIT_SETUP_FAILED: ": its set-up failed"}
    return f"exited with code {assignment.exit_code}{meaning.get(assignment.exit_code or 0, '')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
