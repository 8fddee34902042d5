"""Makes the task run of a job run and reports it to the server as Pending."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import RunInput, TaskRun, TaskRunResult

from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.mirror.flow_run_mirrors import reporter_for
from executor_adapter.prefect.reporting.events import emit_pending_event


def create_task_run(
    job_run: JobRun,
    parameters: dict[str, Any],
    wait_for: Iterable[Any] | None,
    dependencies: dict[str, set[RunInput]] | None = None,
) -> TaskRun:
    """Make the task run of a call, in the caller's context, and report it to the server as Pending."""
    coroutine = job_run.task.create_local_run(
        client=cast(PrefectClient, contextlib.nullcontext()),  # It is entered, but a local run never uses it.
        parameters=parameters,
        wait_for=wait_for,
        extra_task_inputs=dependencies,
    )
    try:
        coroutine.send(None)
    except StopIteration as finished:
        task_run: TaskRun = finished.value
    else:
        coroutine.close()
        raise RuntimeError("Task.create_local_run awaits something in this Prefect version: install a supported one")
    _drop_false_parents(task_run)
    assert task_run.state is not None, "a new task run is Pending"
    job_run.reporter = reporter_for(task_run)
    if job_run.reporter is not None:
        job_run.reporter.report(task_run, task_run.state, None)
    else:
        emit_pending_event(job_run.task, task_run)
    return task_run


def _drop_false_parents(task_run: TaskRun) -> None:
    """Remove parents that are arguments of the call.

    Prefect takes a running future among the arguments for the generator task that makes the call. A job is never one.
    """
    inputs = task_run.task_inputs
    argument_ids = {
        each.id for name, each in _inputs(task_run) if name != "__parents__" and isinstance(each, TaskRunResult)
    }
    parents = [each for each in inputs.get("__parents__", ()) if getattr(each, "id", None) not in argument_ids]
    if parents:
        inputs["__parents__"] = parents
    else:
        inputs.pop("__parents__", None)


def _inputs(task_run: TaskRun) -> Iterator[tuple[str, object]]:
    return ((name, each) for name, inputs in task_run.task_inputs.items() for each in inputs)
