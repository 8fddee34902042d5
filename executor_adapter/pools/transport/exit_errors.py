"""How a worker died, in words and as the error of the job that it took along."""

from __future__ import annotations

import os
import signal

from executor_adapter.exceptions import MemoryLimitError, WorkerCrashedError
from executor_adapter.pools.base import Assignment
from executor_adapter.worker.process import FAILED_TO_START
from executor_adapter.worker.reporter import CHANNEL_LOST


def set_exit(assignment: Assignment, si_code: int, si_status: int) -> None:
    """Note the exit on the assignment; the numbers are those of waitid(2)."""
    if si_code == os.CLD_EXITED:
        assignment.exit_code = si_status
    else:
        assignment.exit_signal = si_status


def crash_error(
    assignment: Assignment, output_tail: str, *, was_up: bool, verdict: WorkerCrashedError | None
) -> WorkerCrashedError:
    """The error of an assignment whose worker died: our own `verdict` where we killed it, else how it exited."""
    error = verdict or WorkerCrashedError(_describe(assignment, was_up))
    error.exit_code = assignment.exit_code
    error.exit_signal = assignment.exit_signal
    error.output_tail = output_tail
    return error


def memory_error(assignment: Assignment, held: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"its process tree held {held >> 20} MiB, more than memory_limit={assignment.memory_limit} bytes: "
        "raise it, or do less at once"
    )


def _describe(assignment: Assignment, was_up: bool) -> str:
    worker = "the worker" if assignment.pid is None else f"worker {assignment.pid}"
    if not was_up:
        return f"{worker} {_exit(assignment)} before it was ready: see output_tail, and the pool's initializer"
    return f"{worker} {_exit(assignment)} while it ran the function"


def _exit(assignment: Assignment) -> str:
    if assignment.exit_signal is not None:
        hint = " (the kernel does so when memory runs out)" if assignment.exit_signal == signal.SIGKILL else ""
        return f"was killed by {_signal_name(assignment.exit_signal)}{hint}"
    meaning = {CHANNEL_LOST: ": the function closed its socket", FAILED_TO_START: ": its set-up failed"}
    return f"exited with code {assignment.exit_code}{meaning.get(assignment.exit_code or 0, '')}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
