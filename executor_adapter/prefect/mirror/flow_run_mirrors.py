"""The mirrors of task runs that Prefect's engines drive: one for each flow run, and one for all outside flow runs.

A flow run's mirror lasts until its task runner calls `close`, when all its tasks have finished: so the server has
recorded them before the flow ends. A mirror that is left when the process exits gets a few seconds, and then leaves
the rest in the outbox.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun
from prefect.settings import get_current_settings

from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.server_api import server_name, start_embedded_server
from executor_adapter.prefect.mirror.timeline import EngineHistory, engine_change

FLOW_END_STALL_TIMEOUT = 30.0
"""Seconds without any progress of the server after which a flow ends without it."""

EXIT_TIMEOUT = 10.0
"""Seconds for unrecorded states when the process exits."""

FLUSH_TIMEOUT = 1.0
"""Seconds for the states so far when a signal may be about to end the process."""

MAX_KEPT = 4
"""Flow runs whose drained mirrors are kept: nothing notifies them of the end of the flow run."""

_mirrors: dict[UUID | str, PrefectMirror] = {}
"""The mirrors by flow run id, and by server name for task runs outside flow runs."""
_kept: dict[UUID | str | None, None] = {}
"""The mirrors that `drain` has kept, the newest last."""
_lock = threading.Lock()


class TaskRunReporter:
    """Reports the states of one task run to the mirror of its flow run."""

    def __init__(self, task_run: TaskRun) -> None:
        self._key = task_run.flow_run_id or server_name()
        self._history = EngineHistory(task_run)
        self._mirror = _mirror_of(self._key)
        self._mirror.add(self._history)

    def report(self, task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> None:
        """Report that the task run enters `state`. Call it in the task run's context, with its times up to date."""
        change = engine_change(task_run, state, previous)
        while not self._mirror.enqueue_step(self._history, change):  # The mirror was closed: this state is late.
            self._mirror = _mirror_of(self._key)

    def flush(self) -> None:
        """Send the states so far, because a signal may be about to end the process."""
        self._mirror.drain(FLUSH_TIMEOUT)


def reporter_for(task_run: TaskRun) -> TaskRunReporter | None:
    """Return the reporter of a new task run. Call it in the context in which the task run was made.

    None if Prefect's own engine must send the events: in a process that multiprocessing started, as Prefect's
    ProcessPoolTaskRunner does, because it passes events to its parent and calls no exit handlers; and in Prefect's test
    mode, which inspects the events instead of sending them.
    """
    if multiprocessing.parent_process() is not None or get_current_settings().testing.test_mode:
        return None
    return TaskRunReporter(task_run)


def _mirror_of(key: UUID | str) -> PrefectMirror:
    mirror = _mirrors.get(key)
    if mirror is not None:
        return mirror
    with _lock:
        if key not in _mirrors:
            start_embedded_server()
            # Exit handlers run in reverse order: this one before the one with which Prefect ends an embedded server.
            atexit.unregister(_end_all)
            atexit.register(_end_all)
            _mirrors[key] = PrefectMirror(stall_timeout=FLOW_END_STALL_TIMEOUT)
        return _mirrors[key]


def find(flow_run_id: UUID) -> PrefectMirror | None:
    """Return the mirror of a flow run that has had tasks and is not closed."""
    return _mirrors.get(flow_run_id)


def hurry(flow_run_id: UUID) -> None:
    """Send only final states of a flow run's tasks, at once, because the flow run was cancelled."""
    if (mirror := _mirrors.get(flow_run_id)) is not None:
        mirror.hurry()


def close(flow_run_id: UUID | None, *, timeout: float | None) -> None:
    """Close the mirror of a flow run whose tasks have finished, and wait until the server has recorded them.

    `timeout` is in seconds; None waits while the server makes progress. Without a flow run id the mirror of task runs
    outside flow runs is drained and not closed, because others may follow.
    """
    if flow_run_id is None:
        if (mirror := _mirrors.get(server_name())) is not None:
            mirror.drain(timeout)
        return
    with _lock:
        mirror = _mirrors.pop(flow_run_id, None)
        _kept.pop(flow_run_id, None)
    if mirror is not None:
        mirror.close(timeout)


def drain(flow_run_id: UUID | None) -> None:
    """Wait until the server has recorded the tasks of a flow run so far, of which more may follow.

    The mirror is kept, because a new one would have to connect and to find out how fast the server is. It is closed
    when MAX_KEPT other flow runs have been drained since, or with the process.
    """
    key = flow_run_id or server_name()
    mirror = _mirrors.get(key)
    if mirror is None:
        return
    report = mirror.drain()
    if flow_run_id is not None and not report.unfinished and mirror.unrecorded():
        close(flow_run_id, timeout=0.0)  # The server was given up: this leaves the rest in the outbox, and says so.
        return
    with _lock:
        _kept.pop(key, None)
        _kept[key] = None
        surplus = next(iter(_kept)) if len(_kept) > MAX_KEPT else None
        _kept.pop(surplus, None)
    if isinstance(surplus, UUID):
        close(surplus, timeout=None)


def _end_all() -> None:
    while _mirrors:
        mirror = _mirrors.popitem()[1]
        mirror.drain(EXIT_TIMEOUT)
        mirror.close(0.0)


os.register_at_fork(after_in_child=_mirrors.clear)
