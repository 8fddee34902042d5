"""The mirrors that tell of task runs which Prefect's engines drive: one a flow run, and one for all outside.

A flow run's lasts until whoever runs its tasks says that they are over (`close`), so that the server has them all
before the flow ends. What is left when the process exits gets a few seconds, and then the spool.
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

from executor_adapter.prefect.mirror.engine_history import EngineHistory, engine_change
from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.server_api import server_name

FLOW_END_STALL_TIMEOUT = 30.0
"""Seconds for which a server may show no progress at all before a flow ends without it."""

EXIT_SECONDS = 10.0
"""What the process's end gives the server for what is not recorded by then."""

_mirrors: dict[UUID | str, PrefectMirror] = {}
"""By flow run; of task runs outside flow runs, by server."""
_lock = threading.Lock()


class TaskRunReporter:
    """Tells the server of one task run, by the mirror of its flow run."""

    def __init__(self, task_run: TaskRun) -> None:
        self._key = task_run.flow_run_id or server_name()
        self._history = EngineHistory(task_run)
        self._mirror = _mirror_of(self._key)
        self._mirror.add_task_run(self._history)

    def report(self, task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> None:
        """The task run, which is as it says now, enters `state`; in its context."""
        change = engine_change(task_run, state, previous)
        while not self._mirror.enqueue_change(self._history, change):  # it was closed, and this comes after the end
            self._mirror = _mirror_of(self._key)

    def hurry(self) -> None:
        """The process may be about to end: let what is told so far be on its way."""
        self._mirror.hurry()
        self._mirror.drain(1.0)
        if isinstance(self._key, str):  # outside flow runs, others may follow where it does not, as at a prompt
            _replace(self._key, self._mirror)


def reporter_for(task_run: TaskRun) -> TaskRunReporter | None:
    """Who is to tell of a task run that was just made, in the context of its making.

    None where Prefect's own engine is to tell: in a process that multiprocessing started, as Prefect's
    ProcessPoolTaskRunner does, which hands its events to its parent and runs nothing at its exit; and in Prefect's test
    mode, where events are looked at instead of sent.
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
            _mirrors[key] = PrefectMirror(stall_timeout=FLOW_END_STALL_TIMEOUT)
        return _mirrors[key]


def _replace(key: str, mirror: PrefectMirror) -> None:
    """End a mirror that hurries: who comes later has a new one."""
    with _lock:
        if _mirrors.get(key) is not mirror:
            return
        del _mirrors[key]
    # No daemon: the interpreter must not exit before the server has had its time.
    threading.Thread(target=mirror.close, args=(EXIT_SECONDS,), name="mirror-end").start()


def find(flow_run_id: UUID) -> PrefectMirror | None:
    """That of a flow run whose tasks are not over, if it has had any."""
    return _mirrors.get(flow_run_id)


def hurry(flow_run_id: UUID) -> None:
    """The flow run was cancelled: tell how its task runs end as soon as they do."""
    if (mirror := _mirrors.get(flow_run_id)) is not None:
        mirror.hurry()


def close(flow_run_id: UUID | None, *, timeout: float | None) -> None:
    """The tasks of a flow run are over: wait until the server has them all, at most `timeout` seconds.

    None: those outside flow runs, of which others may follow.
    """
    if flow_run_id is None:
        if (mirror := _mirrors.get(server_name())) is not None:
            mirror.drain(timeout)
        return
    with _lock:
        mirror = _mirrors.pop(flow_run_id, None)
    if mirror is not None:
        mirror.close(timeout)


@atexit.register
def _end_all() -> None:
    while _mirrors:
        mirror = _mirrors.popitem()[1]
        mirror.drain(EXIT_SECONDS)
        mirror.close(0.0)


os.register_at_fork(after_in_child=_mirrors.clear)
