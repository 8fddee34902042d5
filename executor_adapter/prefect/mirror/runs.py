"""What reports the task runs of engines: a mirror for each flow run, and one for all task runs outside flow runs.

A flow run's mirror lasts until its task runner calls `close`, when all its tasks have finished: so the server has
recorded them before the flow ends. A mirror that is left when the process exits gets a few seconds, and then leaves
the rest in the outbox.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import multiprocessing
import os
import threading
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import Event
from prefect.events.worker import EventsWorker
from prefect.settings import get_current_settings
from prefect.utilities.engine import emit_task_run_state_change_event

from executor_adapter.prefect.mirror.events import Change
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.server import server_name, start_embedded_server
from executor_adapter.prefect.mirror.timeline import TaskRunHistory, engine_change

logger = logging.getLogger("executor_adapter.prefect")

FLOW_END_STALL_TIMEOUT = 30.0
"""Seconds without any progress of the server after which a flow ends without it."""

EXIT_TIMEOUT = 10.0
"""Seconds for unrecorded states when the process exits."""

EVENTS_FLUSH_TIMEOUT = 2.0
"""Seconds for the events that Prefect sends."""

_mirrors: dict[UUID | str, TaskRunMirror] = {}
"""The mirrors by flow run id, and by server name for task runs outside flow runs."""
_drained: UUID | None = None
"""The flow run that `drain` was called for last."""
_lock = threading.Condition()


class TaskRunReporter:
    """Reports the states of one task run to the mirror of its flow run."""

    def __init__(self, task_run: TaskRun) -> None:
        self._key = task_run.flow_run_id or server_name()
        self._context = contextvars.copy_context()
        run_id = str(task_run.id)  # Its job has the same id.
        self._history: TaskRunHistory[Change] = TaskRunHistory(run_id, run_id, task_run.tags)
        self._mirror = _mirror_of(self._key)
        self._mirror.add(self._history)

    def report(self, task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> None:
        """Report that the task run enters `state`. Call it in the task run's context, with its times up to date."""
        change = engine_change(task_run, state, previous)
        while not self._mirror.enqueue_step(self._history, change):  # The mirror was closed: this state is late.
            self._mirror = self._context.copy().run(_mirror_of, self._key)  # A rollback may be in another flow run.


class PrefectReporter:
    """Reports the states of one task run by Prefect's own events."""

    def __init__(self, task: Task[..., Any]) -> None:
        self._task = task
        self._last: Event | None = None

    def report(self, task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> None:
        """Report that the task run enters `state`. Call it in the task run's context, once it has one."""
        with contextlib.ExitStack() as stack:
            if previous is None:
                # Prefect's events worker reads the flow run and the task run of an event from these contexts. Without
                # them it uses those that were around the first event of this process.
                of_flow: dict[str, Any] = {"flow_run": None}
                of_task: dict[str, Any] = {"task": self._task, "task_run": task_run, "persist_result": False}
                if FlowRunContext.get() is None:
                    stack.enter_context(FlowRunContext.model_construct(**of_flow))
                stack.enter_context(TaskRunContext.model_construct(**of_task))
            self._last = emit_task_run_state_change_event(task_run, previous, state, self._last)


def reporter_for(task: Task[..., Any], task_run: TaskRun) -> TaskRunReporter | PrefectReporter:
    """Return the reporter of a new task run. Call it in the context in which the task run was made.

    Prefect must send the events in a process that multiprocessing started, as Prefect's ProcessPoolTaskRunner does,
    because it passes events to its parent and calls no exit handlers; and in Prefect's test mode, which inspects the
    events instead of sending them.
    """
    if multiprocessing.parent_process() is not None or get_current_settings().testing.test_mode:
        return PrefectReporter(task)
    return TaskRunReporter(task_run)


def flush_events(timeout: float = EVENTS_FLUSH_TIMEOUT) -> None:
    """Wait until the events of this process are sent, at most `timeout` seconds.

    For a process that is about to end by a signal, as Prefect ends a flow's process: queued events would be lost.
    """
    # `wait_until_empty` has no timeout, and an unreachable server must not hold up the end.
    waiting = threading.Thread(target=EventsWorker.instance().wait_until_empty, name="flush-events", daemon=True)
    waiting.start()
    waiting.join(timeout)


def _mirror_of(key: UUID | str) -> TaskRunMirror:
    with _lock:
        if key not in _mirrors:
            start_embedded_server()
            # Exit handlers run in reverse order: this one before the one with which Prefect ends an embedded server.
            atexit.unregister(_end_all)
            atexit.register(_end_all)
            _mirrors[key] = TaskRunMirror(stall_timeout=FLOW_END_STALL_TIMEOUT)
        return _mirrors[key]


def find(flow_run_id: UUID | None) -> TaskRunMirror | None:
    """Return the mirror of a flow run that has had tasks and is not closed."""
    return None if flow_run_id is None else _mirrors.get(flow_run_id)


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
    if mirror is not None:
        mirror.close(timeout)


def drain(flow_run_id: UUID | None) -> None:
    """Wait until the server has recorded the tasks of a flow run so far, of which more may follow.

    The mirror is kept, because a new one would have to connect and to find out how fast the server is. Nothing notifies
    it of the end of the flow run, so it is closed when another one is drained, or with the process.
    """
    global _drained
    mirror = _mirrors.get(flow_run_id or server_name())
    if mirror is None:
        return
    report = mirror.drain()
    if flow_run_id is None:
        return
    with _lock:
        before, _drained = _drained, flow_run_id
    if before not in (None, flow_run_id):
        close(before, timeout=None)
    if not (report.unfinished or report.complete):
        close(flow_run_id, timeout=0.0)  # The server was given up: this leaves the rest in the outbox, and says so.


def _end_all() -> None:
    while _mirrors:
        mirror = _mirrors.popitem()[1]
        mirror.drain(EXIT_TIMEOUT)
        mirror.close(0.0)


os.register_at_fork(after_in_child=_mirrors.clear)
# A thread of the parent may hold the lock, and is not in the child: there it is made anew.
os.register_at_fork(after_in_child=_lock.__init__)  # type: ignore[misc]
