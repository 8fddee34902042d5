"""Runs one task run of a job task to its end, as `prefect.task_engine.run_task` does for a task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, TypeVar

from prefect.client.schemas.objects import State, TaskRun
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import patch_print
from executor_adapter.prefect.engine.async_engine import AsyncJobEngine
from executor_adapter.prefect.engine.base import JobEngine, raise_if_suspended
from executor_adapter.prefect.engine.job_run import JobRun, driving
from executor_adapter.prefect.engine.sync_engine import SyncJobEngine
from executor_adapter.prefect.engine.task_runs import create_task_run

ReturnType = Literal["state", "result"]
Engine = TypeVar("Engine", bound=JobEngine)

_NO_SCOPE = contextlib.nullcontext()


def run_sync(
    job_run: JobRun,
    parameters: dict[str, Any],
    *,
    wait_for: Iterable[Any] | None = None,
    return_type: ReturnType = "result",
    task_run: TaskRun | None = None,
    scope: AbstractContextManager[object] = _NO_SCOPE,
) -> Any:
    """Run the task of `job_run` to its end and return its value, or its final State with `return_type="state"`.

    `task_run`: an existing task run, already reported as Pending; by default a new one is made. `scope`: entered around
    the whole run.

    Raises:
        Exception: the function's own, or the executor's; with `return_type="state"` it is in the state instead.
    """
    with scope, _new_engine(SyncJobEngine, job_run, parameters, wait_for, task_run) as engine:
        try:
            with engine.start():
                while engine.is_running():
                    engine.wait_until_ready()
                    with engine.asset_context(), engine.run_context(), engine.transaction_context() as transaction:
                        engine.call_task_fn(transaction)
                    raise_if_suspended()
        except Exception as error:
            if not engine.is_unfinished():
                raise
            engine.handle_exception(job_run.refuse_attempts(error))
    return engine.state if return_type == "state" else engine.result()


async def run_async(
    job_run: JobRun,
    parameters: dict[str, Any],
    *,
    wait_for: Iterable[Any] | None = None,
    return_type: ReturnType = "result",
    scope: AbstractAsyncContextManager[object] = _NO_SCOPE,
) -> State[Any] | Any:
    """Run the task of `job_run` in the running event loop, as `run_sync` does in a thread."""
    async with scope:
        with _new_engine(AsyncJobEngine, job_run, parameters, wait_for) as engine:
            try:
                async with engine.start():
                    while engine.is_running():
                        await engine.wait_until_ready()
                        async with (
                            engine.asset_context(),
                            engine.run_context(),
                            engine.transaction_context() as transaction,
                        ):
                            await engine.call_task_fn(transaction)
                        raise_if_suspended()
            except Exception as error:
                if not engine.is_unfinished():
                    raise
                await engine.handle_exception(job_run.refuse_attempts(error))
    return engine.state if return_type == "state" else await engine.result()


@contextlib.contextmanager
def _new_engine(
    engine_class: type[Engine],
    job_run: JobRun,
    parameters: dict[str, Any],
    wait_for: Iterable[Any] | None,
    task_run: TaskRun | None = None,
) -> Iterator[Engine]:
    """Make an engine that drives the job within the block; on leaving, release everything the job holds."""
    if should_log_prints(job_run.task):
        patch_print()
    with driving(job_run.task), contextlib.closing(job_run):
        yield engine_class(
            task=job_run.task,
            parameters=parameters,
            task_run=task_run or create_task_run(job_run, parameters, wait_for),
            wait_for=wait_for,
            job_run=job_run,
        )
