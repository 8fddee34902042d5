"""The part of Prefect that a function sees in a worker process, without the parent's engine.

`get_run_logger()`, `prefect.runtime`, `get_run_context()` and all calls of Prefect's own work there: the worker enters
contexts made from about 1 KB of JSON (`payload`) and from the call itself, whose fields are made when they are first
read (`contexts`). A client connects when a call first needs one. Log records travel as those of any other job do, and
the parent logs them against the task run.
Tasks and flows that the function calls run in the worker, in engines of Prefect's; it has no task runner, so it cannot
submit tasks. Events that the function emits are sent by Prefect's own thread in the worker, related to the task run; a
worker sends the remaining ones before it exits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

from prefect.concurrency.context import ConcurrencyContext
from prefect.context import TagsContext, refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.logging.loggers import patch_print
from prefect.settings import get_current_settings

from executor_adapter.prefect.child.contexts import (
    FlowRunParts,
    JobFlowRunContext,
    JobRunContext,
    WorkerClientContext,
    default_result_store,
)
from executor_adapter.prefect.child.logs import job_logger
from executor_adapter.worker import context, state, wire

TASK_RUN_SCOPE = f"{__name__}:task_run_scope"
TASK_RUN_SCOPE_HERE = f"{__name__}:task_run_scope_here"

IN_PROCESS_POOLS = frozenset({"thread", "coroutine"})
"""Pools whose functions see the context variables of the flow's process; "auto" is one of them by then."""

FLUSH_TIMEOUT = wire.EXIT_SECONDS - 1.0
"""Seconds for which a worker that exits sends its events, before it is killed."""


@contextlib.contextmanager
def task_run_scope(payload: str, call: context.BoundCall) -> Iterator[None]:
    """Enter the contexts of the task run and the flow run that `payload` describes, in a worker process."""
    received = json.loads(payload)
    _use_settings(received["flow"])
    with contextlib.ExitStack() as stack:
        parts = _flow_run_parts(received["flow"])
        if parts is not None:
            stack.enter_context(JobFlowRunContext.of(parts))
        stack.enter_context(_client_context())
        _enter_task_run(stack, received, call)
        if received["log_prints"]:
            stack.enter_context(patch_print())
        try:
            yield
        except SystemExit:  # The worker was asked to exit, and will not run its exit functions.
            _flush_events()
            raise


@contextlib.contextmanager
def task_run_scope_here(payload: str, call: context.BoundCall) -> Iterator[None]:
    """Enter the context of the task run in the process and context of its flow run."""
    with contextlib.ExitStack() as stack:
        _enter_task_run(stack, json.loads(payload), call)
        yield


def _enter_task_run(stack: contextlib.ExitStack, received: dict[str, Any], call: context.BoundCall) -> None:
    # Without the task's own tags, if the parent has sent these apart.
    tags = received["tags"] if "tags" in received else received["task_run"]["tags"]
    stack.enter_context(TagsContext.model_construct(current_tags=set(tags)))
    stack.enter_context(JobRunContext.of(received, call))
    stack.enter_context(ConcurrencyContext())


@functools.lru_cache(maxsize=16)
def _flow_run_parts(flow: str) -> FlowRunParts | None:
    """Return what the jobs of a flow run share; None if they have no flow run."""
    received = json.loads(flow)
    return FlowRunParts(received) if "flow_run" in received else None


_client_context = functools.cache(WorkerClientContext.of)


@functools.lru_cache(maxsize=1)  # There is nothing to do if the previous job belonged to the same flow run.
def _use_settings(flow: str) -> None:
    """Apply the flow run's Prefect settings and levels to this process, and the settings to programs that it starts.

    They may come from `temporary_settings` or another profile, or from an environment that has changed since the worker
    was started.
    """
    _client_context.cache_clear()
    received = json.loads(flow)
    with state.lasting_changes():
        prepare_process()
        for name, level in received["log_levels"].items():
            logging.getLogger(name).setLevel(level)
        wanted = _own_variables() | received["settings"]
        now = _prefect_variables()
        if wanted == now:
            return
        for name in now.keys() - wanted.keys():
            del os.environ[name]
        os.environ.update(wanted)
    refresh_global_settings_context()
    default_result_store.cache_clear()
    _flow_run_parts.cache_clear()


def _prefect_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


_own_variables = functools.cache(_prefect_variables)
"""Returns the PREFECT_ variables that the worker was started with."""


def is_worker() -> bool:
    """Return whether this process is a worker that has run a job of a flow or a job task."""
    return prepare_process.cache_info().currsize > 0


@functools.cache
def prepare_process() -> None:
    """Remove Prefect's log handlers from this worker and send its last events at exit.

    The pool collects the records, and Prefect's own handlers would write each of them a second time. Prefect sends the
    last events when the interpreter waits for its threads, which a worker does not do.
    """
    atexit.register(_flush_events)
    os.register_at_fork(after_in_child=lambda: _client_context().disconnect())
    handlers = list(logging.root.handlers)
    importlib.import_module("prefect.main")  # This sets the levels of Prefect's loggers and replaces root's handlers.
    logging.root.handlers = handlers
    job_logger.filters.clear()  # The parent writes these records to the task run's log.
    for logger in map(logging.getLogger, ("", *logging.root.manager.loggerDict)):
        for handler in list(logger.handlers):
            if isinstance(handler, APILogHandler | PrefectConsoleHandler):
                logger.removeHandler(handler)
    for name in get_current_settings().logging.extra_loggers or ():
        logging.getLogger(name).propagate = True  # Prefect has given them a handler of their own, removed above.


def _flush_events() -> None:
    """Send the events that functions have emitted in this process."""
    EventsWorker.drain_all(timeout=FLUSH_TIMEOUT)
