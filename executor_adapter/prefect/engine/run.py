"""Runs one task run of a job task to its end, as `prefect.task_engine.run_task` does for a task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal

from prefect.client.schemas.objects import State, TaskRun
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import keep_print_patched
from executor_adapter.prefect.engine.base import AsyncJobEngine, SyncJobEngine
from executor_adapter.prefect.engine.job_run import JobRun, driving
from executor_adapter.prefect.engine.task_runs import create_task_run

ReturnType = Literal["state", "result"]

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
    """Run the task of `job_run` and block until it is over; its value, or its final State with `return_type="state"`.

    `task_run`: one that exists already (its Pending was told to the server); else one is made. `scope`: entered around
    all of it.

    Raises:
        Exception: the function's own, or the executor's; with `return_type="state"` it is in the state instead.
    """
    if should_log_prints(job_run.task):
        keep_print_patched()
    with scope, driving(job_run.task), contextlib.closing(job_run):
        engine = SyncJobEngine(
            task=job_run.task,
            parameters=parameters,
            task_run=task_run or create_task_run(job_run, parameters, wait_for),
            wait_for=wait_for,
            job_run=job_run,
        )
        try:
            with engine.start():
                while engine.is_running():
                    engine.wait_until_ready()
                    with engine.asset_context(), engine.run_context(), engine.transaction_context() as transaction:
                        engine.call_task_fn(transaction)
        except Exception as error:
            if not engine.has_no_end():
                raise
            engine.handle_exception(job_run.give_up(error))
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
    if should_log_prints(job_run.task):
        keep_print_patched()
    async with scope:
        with driving(job_run.task), contextlib.closing(job_run):
            engine = AsyncJobEngine(
                task=job_run.task,
                parameters=parameters,
                task_run=create_task_run(job_run, parameters, wait_for),
                wait_for=wait_for,
                job_run=job_run,
            )
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
            except Exception as error:
                if not engine.has_no_end():
                    raise
                await engine.handle_exception(job_run.give_up(error))
    return engine.state if return_type == "state" else await engine.result()
