"""Writes the logs of the task runs of `run_jobs`: the messages of each job, and how its attempts failed.

It has a thread of its own, because a line through Prefect's handlers takes longer than a short job, and the supervisor
must not wait for it. Lines of one job stay in order.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from prefect.context import FlowRunContext
from prefect.logging.loggers import PrefectLogAdapter, get_logger

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.prefect.child.logs import RunLogger, log_failed_attempt, log_message

Entry = tuple[Callable[..., None], str, str, tuple[Any, ...]]


class RunLog:
    """Writes to the logs of a flow run's task runs. The write methods are thread-safe and return at once."""

    def __init__(self) -> None:
        self._shared = _flow_run_fields()
        self._context = contextvars.copy_context()
        self._entries: queue.SimpleQueue[Entry | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def write_message(self, task_run_id: str, name: str, topic: str, content: Any) -> None:
        """Write a message of a job: topics and contents are those of `pools.base.PoolSupervisor.on_message`."""
        self._put((self._log_message, task_run_id, name, (topic, content)))

    def write_failure(self, task_run_id: str, name: str, error: ErrorFacts, delay: float | None) -> None:
        """Write that an attempt failed; the next one follows in `delay` seconds, or none if it is None."""
        self._put((log_failed_attempt, task_run_id, name, (error, delay)))

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until Prefect's handlers have everything written so far, at most `timeout` seconds."""
        if self._thread is not None:
            written = threading.Event()
            self._entries.put(written)
            written.wait(timeout)

    def _put(self, entry: Entry) -> None:
        if self._thread is None:
            self._start()
        self._entries.put(entry)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._context.copy().run, args=(self._run,), name="run-log", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Let the thread end once it has written what is queued; a later write starts another thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            last = threading.Event()
            last.set()
            self._entries.put(last)

    def _log_message(self, logger: RunLogger, topic: str, content: Any) -> None:
        flow_run = FlowRunContext.get()
        log_message(logger, topic, content, log_prints=flow_run is not None and flow_run.log_prints)

    def _run(self) -> None:
        while True:
            entry = self._entries.get()
            if isinstance(entry, threading.Event):
                if entry.is_set():
                    return
                entry.set()
                continue
            write, task_run_id, name, args = entry
            write(self._logger(task_run_id, name), *args)

    def _logger(self, task_run_id: str, name: str) -> Any:
        fields = {**self._shared, "task_run_id": task_run_id, "task_run_name": name, "task_name": name}
        return PrefectLogAdapter(get_logger("prefect.task_runs"), extra=fields)


def _flow_run_fields() -> dict[str, Any]:
    """Return the fields that Prefect's handlers need of the flow run around the caller."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context is not None else None
    flow = context.flow if context is not None else None
    return {
        "flow_run_id": str(flow_run.id) if flow_run is not None else None,
        "flow_run_name": flow_run.name if flow_run is not None else "<unknown>",
        "flow_name": flow.name if flow is not None else "<unknown>",
    }
