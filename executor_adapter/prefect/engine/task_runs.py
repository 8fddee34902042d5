"""Makes the task run of a job run, reported to the server as Pending, and the store of its result, with less work.

The first task run of a task in a flow run is made by Prefect. Later ones are copies of it, with an id, a name, inputs
and a state of their own: Prefect would make and validate all of it again, which is a tenth of all that a task costs.

Prefect resolves the path of a result's file, and the folder of all results, several times a task run, each with a call
of the system for each part of the path, which is as much. Where the folder is known, and the key is a plain name as
Prefect's keys are, the path follows from both.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from prefect import Task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import RunInput, State, StateDetails, TaskRun
from prefect.context import FlowRunContext, TagsContext, TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata, ResultStore  # type: ignore[attr-defined]
from prefect.states import Pending
from prefect.types import DateTime
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import collect_task_run_inputs_sync

from executor_adapter.job import uuid7
from executor_adapter.prefect.child.payload import version_of
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.mirror.runs import reporter_for


def create_task_run(
    job_run: JobRun,
    parameters: dict[str, Any],
    wait_for: Iterable[Any] | None,
    dependencies: dict[str, set[RunInput]] | None = None,
) -> TaskRun:
    """Make the task run of a call, in the caller's context, and report it to the server as Pending."""
    task, sample = job_run.task, _sample_for(job_run.task)
    task_run = _made_by_prefect(task) if sample is None else _copy_of(sample, task)
    task_run.task_inputs = {**task_run.task_inputs, **_inputs_of(parameters, wait_for, dependencies)}
    assert task_run.state is not None, "a new task run is Pending"
    job_run.reporter = reporter_for(task, task_run)
    job_run.reporter.report(task_run, task_run.state, None)
    return task_run


def _inputs_of(
    parameters: dict[str, Any], wait_for: Iterable[Any] | None, dependencies: dict[str, set[RunInput]] | None
) -> dict[str, list[Any]]:
    """Return the task runs that the arguments of a call come from, and those that it waits for."""
    found: dict[str, set[Any]] = {name: collect_task_run_inputs_sync(value) for name, value in parameters.items()}
    if wait_for:
        found["wait_for"] = collect_task_run_inputs_sync(wait_for)
    for name, further in (dependencies or {}).items():
        found[name] = {*found[name], *further}
    return {name: list(inputs) for name, inputs in found.items()}


# --- the first task run of a task ---


def _made_by_prefect(task: Task[..., Any]) -> TaskRun:
    """Return a new task run without the arguments of its call.

    Prefect takes a running future among them for the generator task that makes the call. A job is never one.
    """
    # The client is entered, but a local run never uses it.
    client = cast(PrefectClient, contextlib.nullcontext())
    return run_coro_as_sync(task.create_local_run(client=client, parameters={}))


# --- later ones ---


_samples: weakref.WeakKeyDictionary[Task[..., Any], tuple[list[int], TaskRun]] = weakref.WeakKeyDictionary()
"""Of each task, a task run that Prefect made, to be copied while the task has the attributes that it had then."""


def _sample_for(task: Task[..., Any]) -> TaskRun | None:
    """Return a task run of `task` that can be copied in the caller's context; None where Prefect must make it."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or TaskRunContext.get() is not None:
        return None
    version, known = version_of(task), _samples.get(task)
    if known is None or known[0] != version or known[1].flow_run_id != context.flow_run.id:
        known = _samples[task] = version, _made_by_prefect(task)
    _, sample = known
    # A Prefect that names task runs otherwise than `_copy_of` must make them all.
    return sample if sample.name == f"{task.name}-{sample.dynamic_key[:3]}" and not sample.task_inputs else None


def _copy_of(sample: TaskRun, task: Task[..., Any]) -> TaskRun:
    task_run_id, key = UUID(uuid7()), str(uuid4())
    state: State[Any] = Pending(state_details=StateDetails(task_run_id=task_run_id, flow_run_id=sample.flow_run_id))
    task_run = copy.copy(sample)
    task_run.id, task_run.dynamic_key, task_run.name = task_run_id, key, f"{task.name}-{key[:3]}"
    task_run.tags = list(task.tags | TagsContext.get().current_tags)
    task_run.labels = dict(sample.labels)
    task_run.state, task_run.state_id = state, state.id
    task_run.expected_start_time = task_run.created = task_run.updated = cast(DateTime, state.timestamp)
    return task_run


# --- its result ---


class JobResultStore(ResultStore):
    """Does what Prefect's does, and asks that one where it takes more than joining two names."""

    @classmethod
    def like(cls, store: ResultStore) -> JobResultStore:
        """Return a store with the same storage, serializer, locks and cache."""
        return cls.model_construct(store.model_fields_set, **vars(store))

    def exists(self, key: str) -> bool:
        """Return whether there is a record under `key`."""
        path = self._path_of(key) if self.metadata_storage is None else None
        return (path is None or os.path.lexists(path)) and super().exists(key)

    def create_result_record(self, obj: Any, key: str | None = None, expiration: Any = None) -> ResultRecord[Any]:
        """Make the record of a value, without writing it."""
        key = key or self.storage_key_fn()
        path = self._path_of(key)
        if path is None:
            return super().create_result_record(obj, key, expiration)
        metadata = ResultRecordMetadata(serializer=self.serializer, expiration=expiration, storage_key=path)
        return ResultRecord(result=obj, metadata=metadata)

    def _path_of(self, key: str) -> str | None:
        storage = self.result_storage
        is_plain = isinstance(key, str) and key.replace("-", "").replace("_", "").isalnum()
        if type(storage) is not LocalFileSystem or self.result_storage_block_id is not None or not is_plain:
            return None
        folder = _resolved(storage.basepath or "")
        return None if folder is None else os.path.join(folder, key)


@functools.lru_cache(maxsize=64)
def _resolved(basepath: str) -> str | None:
    path = Path(basepath).expanduser()
    return str(path.resolve()) if path.is_absolute() else None
