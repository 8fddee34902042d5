"""Tracks the open supervisors of this process, and ends them at exit, on a signal or in a forked process."""

from __future__ import annotations

import atexit
import functools
import os
import weakref

from executor_adapter.executor.signals import signal_watch
from executor_adapter.supervision import Supervisor, program_output

_open: set[Supervisor] = set()
"""Kept here because an executor may be garbage-collected before its jobs are finished."""


def track(executor: object, supervisor: Supervisor) -> None:
    """Close the supervisor when its executor is garbage-collected, on a signal that ends the program, and at exit."""
    _open.add(supervisor)
    supervisor.thread.on_released.append(functools.partial(_open.discard, supervisor))
    signal_watch.listen(supervisor.on_signal)
    supervisor.thread.on_closed.append(functools.partial(signal_watch.leave, supervisor.on_signal))
    drain = functools.partial(supervisor.close, cancel_pending=False, cancel_running=False)
    weakref.finalize(executor, drain).atexit = False


def stop_tracking(supervisor: Supervisor) -> None:
    """Do not wait for this supervisor when the interpreter exits."""
    _open.discard(supervisor)


@atexit.register
def _drain_all() -> None:
    """Run all submitted jobs to their end before the interpreter exits, as concurrent.futures does."""
    for supervisor in list(_open):
        supervisor.close(cancel_pending=False, cancel_running=False)
    for supervisor in list(_open):
        supervisor.thread.wait()
    program_output.finish()


def _leave_to_parent() -> None:
    """Wait for nothing in a forked process: the supervisors run in the parent."""
    for supervisor in _open:
        supervisor.detach_after_fork()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
