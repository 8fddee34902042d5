"""Makes the task run of a job run, which is Pending from then on."""

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
    """Make the task run of a call, in the context of the caller, and tell the server that it is Pending."""
    making = job_run.task.create_local_run(
        client=cast(PrefectClient, contextlib.nullcontext()),  # asked for, entered, and not used for a local run
        parameters=parameters,
        wait_for=wait_for,
        extra_task_inputs=dependencies,
    )
    try:
        making.send(None)
    except StopIteration as finished:
        task_run: TaskRun = finished.value
    else:
        making.close()
        raise RuntimeError("Prefect's Task.create_local_run waits for something: it did not in the versions known")
    _drop_false_parents(task_run)
    assert task_run.state is not None, "a new task run is Pending"
    job_run.reporter = reporter_for(task_run)
    if job_run.reporter is not None:
        job_run.reporter.report(task_run, task_run.state, None)
    else:
        emit_pending_event(job_run.task, task_run)
    return task_run


def _drop_false_parents(task_run: TaskRun) -> None:
    """Prefect takes an argument's future that is Running for the generator which the call is made in; no job is one."""
    inputs = task_run.task_inputs
    given = {each.id for name, each in _inputs(task_run) if name != "__parents__" and isinstance(each, TaskRunResult)}
    parents = [each for each in inputs.get("__parents__", ()) if getattr(each, "id", None) not in given]
    if parents:
        inputs["__parents__"] = parents
    else:
        inputs.pop("__parents__", None)


def _inputs(task_run: TaskRun) -> Iterator[tuple[str, object]]:
    return ((name, each) for name, given in task_run.task_inputs.items() for each in given)
