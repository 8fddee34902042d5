"""The part of Prefect that a function sees in a worker process, without a client, a network or the parent's engine.

`get_run_logger()`, `print` with `log_prints`, `prefect.runtime` and the task run's tags work there. The parent packs
the task run into about 1 KB of JSON (`task_run_payload`), and the worker enters it around the function
(`task_run_scope`). Log records travel as those of any other job do, and the parent logs them against the task run.
Tasks and flows that the function calls run in the worker, in engines with clients of their own; it has no task runner,
so it cannot submit tasks. Events that the function emits are sent by Prefect's own thread in the worker, related to the
task run; a worker sends the remaining ones before it exits.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, Self

from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TagsContext, TaskRunContext, refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.logging.loggers import patch_print
from prefect.results import ResultStore
from prefect.settings import Settings, get_current_settings
from prefect.task_runners import TaskRunner
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import job_logger

if TYPE_CHECKING:
    from prefect import Task

TASK_RUN_SCOPE = f"{__name__}:task_run_scope"
TASK_RUN_SCOPE_HERE = f"{__name__}:task_run_scope_here"

_TASK_RUN_FIELDS = {
    "id", "name", "flow_run_id", "task_key", "dynamic_key", "task_version", "tags", "run_count", "flow_run_run_count",
    "start_time",
}  # fmt: skip
_FLOW_RUN_FIELDS = {
    "id", "name", "flow_id", "flow_version", "deployment_id", "tags", "run_count", "parent_task_run_id", "start_time",
    "expected_start_time", "work_queue_name",
}  # fmt: skip

FLUSH_TIMEOUT = 0.8
"""Seconds for which a worker that exits sends its events; it is killed one second after it was asked to exit."""

MAX_SHOWN_CHARACTERS = 200
"""Longer parameters are left out of `prefect.runtime`, because the function has them anyway."""


# --- in the parent ---


def task_run_payload(task: Task[..., Any], task_run: TaskRun, parameters: Mapping[str, Any]) -> str:
    """Return, as JSON, the part of `task_run` and of the flow run around it that the worker needs."""
    flow_run_context = FlowRunContext.get()
    fields = {
        "task": {"name": task.name, "version": task.version, "description": task.description},
        "task_run": task_run.model_dump(mode="json", include=_TASK_RUN_FIELDS),
        "parameters": shown_parameters(parameters),
        "tags": sorted(TagsContext.get().current_tags),
        "log_prints": should_log_prints(task),
        "flow": flow_run_payload(flow_run_context) if flow_run_context is not None else None,
    }
    return json.dumps(fields)


def flow_run_payload(context: FlowRunContext) -> str | None:
    """Return, as JSON, the part of the flow run that the worker needs; it is the same for all its task runs."""
    if context.flow_run is None:
        return None
    fields = {
        "flow": {"name": context.flow.name, "version": context.flow.version} if context.flow else {"name": "<unknown>"},
        "flow_run": json.loads(context.flow_run.model_dump_json(include=_FLOW_RUN_FIELDS)),
        "parameters": shown_parameters(context.parameters or {}),
        "settings": _settings_variables(get_current_settings()),
    }
    return json.dumps(fields)


def _settings_variables(settings: Settings) -> dict[str, str]:
    """Return Prefect's settings around the caller, without the defaults, as environment variables."""
    if not _last_settings or _last_settings[0] is not settings:
        _last_settings[:] = settings, settings.to_environment_variables(exclude_unset=True)
    variables: dict[str, str] = _last_settings[1]
    return variables


_last_settings: list[Any] = []
"""The settings converted last and their variables; the next call nearly always converts the same settings."""


def shown_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that `prefect.runtime` shows."""
    return {
        name: value
        for name, value in parameters.items()
        if isinstance(value, str | int | float | bool | None) and len(str(value)) <= MAX_SHOWN_CHARACTERS
    }


# --- in the worker ---


class NoTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Refuses to submit tasks in a worker process, in place of the flow's task runner in the parent."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def duplicate(self) -> Self:
        """Return the same object, which runs nothing and may be shared."""
        return self

    def submit(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to submit a task.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a job in a worker process cannot submit tasks: submit them in the flow, or use pool='thread'"
        )


@contextlib.contextmanager
def task_run_scope(payload: str) -> Iterator[None]:
    """Enter the contexts of the task run and the flow run that `payload` describes, in a worker process."""
    prepare_process()
    received = json.loads(payload)
    with contextlib.ExitStack() as stack:
        _use_settings(received["flow"])
        if received["flow"] is not None:
            stack.enter_context(_flow_run_context(received["flow"]))
        _enter_task_run(stack, received, log_prints=received["log_prints"])
        if received["log_prints"]:
            stack.enter_context(patch_print())
        try:
            yield
        except SystemExit:  # The worker was asked to exit, and will not run its exit functions.
            _flush_events()
            raise


@contextlib.contextmanager
def task_run_scope_here(payload: str) -> Iterator[None]:
    """Enter the context of the task run in the process and context of its flow run, with `print` logged."""
    with contextlib.ExitStack() as stack:
        _enter_task_run(stack, json.loads(payload), log_prints=True)
        yield


def _enter_task_run(stack: contextlib.ExitStack, received: dict[str, Any], *, log_prints: bool) -> None:
    task_run = TaskRun.model_validate(received["task_run"])
    # The context is built without validation, because a valid one needs a client.
    fields: dict[str, Any] = {
        "task": SimpleNamespace(**received["task"], tags=set(task_run.tags)),
        "task_run": task_run,
        "parameters": received["parameters"],
        "log_prints": log_prints,
        "result_store": _result_store(),
        "persist_result": False,
    }
    tags = received.get("tags", task_run.tags)  # Without the task's own tags, if the parent has sent these apart.
    stack.enter_context(TagsContext.model_construct(current_tags=set(tags)))
    stack.enter_context(TaskRunContext.model_construct(**fields))


@functools.lru_cache(maxsize=16)
def _flow_run_context(flow: str) -> FlowRunContext:
    """Return the context of a flow run, which is built once in a worker and entered by one job at a time."""
    received = json.loads(flow)
    fields: dict[str, Any] = {
        "flow": SimpleNamespace(**received["flow"]),
        "flow_run": FlowRun.model_validate(received["flow_run"]),
        "parameters": received["parameters"],
        "task_runner": NoTaskRunner().__enter__(),
        "result_store": _result_store(),
        "persist_result": False,
        "detached": True,
    }
    return FlowRunContext.model_construct(**fields)


@functools.cache
def _result_store() -> ResultStore:
    """Return the result store for the tasks and flows that functions call in this process."""
    return ResultStore()


@functools.lru_cache(maxsize=1)  # There is nothing to do if the previous job belonged to the same flow run.
def _use_settings(flow: str | None) -> None:
    """Apply the flow run's Prefect settings to this process and to programs that the function starts.

    They may come from `temporary_settings` or another profile, or from an environment that has changed since the worker
    was started.
    """
    wanted = _own_variables() | (json.loads(flow)["settings"] if flow is not None else {})
    now = _prefect_variables()
    if wanted == now:
        return
    for name in now.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)
    refresh_global_settings_context()
    _result_store.cache_clear()


@functools.cache
def _own_variables() -> dict[str, str]:
    """Return the PREFECT_ variables that the worker was started with."""
    return _prefect_variables()


def _prefect_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}


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
    handlers = list(logging.root.handlers)
    importlib.import_module("prefect.main")  # This sets the levels of Prefect's loggers and replaces root's handlers.
    logging.root.handlers = handlers
    job_logger.filters.clear()  # The parent writes these records to the task run's log.
    loggers = (logging.getLogger(name) for name in ("", *logging.root.manager.loggerDict))
    for logger in loggers:
        for handler in list(logger.handlers):
            if isinstance(handler, APILogHandler | PrefectConsoleHandler):
                logger.removeHandler(handler)


def _flush_events() -> None:
    """Send the events that functions have emitted in this process."""
    EventsWorker.drain_all(timeout=FLUSH_TIMEOUT)
