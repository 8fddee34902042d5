"""Shared by the pools of this process: a job's bound call, its context and its scope."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from executor_adapter.job import Job, resolve
from executor_adapter.pools.base import Assignment, PoolSupervisor, WorkerPool
from executor_adapter.pools.in_process.slot_loan import SlotLoan, current_slot_loan
from executor_adapter.pools.in_process.stacks import with_own_frames
from executor_adapter.pools.transport.envelope import ABANDONED, Outcome, raised, returned
from executor_adapter.worker.context import BoundCall, JobContext, enter_job, leave_job


class Stop(BaseException):
    """Raised in a thread to end its function. A BaseException, so that `except Exception` does not catch it."""


def job_context(assignment: Assignment, supervisor: PoolSupervisor, cancelled: Callable[[], bool]) -> JobContext:
    """Return the context that `current_job()` gives to the function. It reports to the supervisor."""
    job = assignment.job
    return JobContext(
        job.job_id,
        assignment.number,
        emit=lambda topic, content: supervisor.call_soon(supervisor.on_message, assignment, topic, content),
        ends_at=None if job.max_runtime is None else (assignment.started_at or 0.0) + job.max_runtime,
        cancelled=cancelled,
        checkpoint=assignment.checkpoint,
        tool_name=job.tool_name,
        metadata=job.metadata,
    )


def open_scope(job: Job, scope: tuple[str, Any]) -> AbstractContextManager[Any]:
    """Return the context manager to enter around the function."""
    reference, argument = scope
    return resolve(reference)(argument, BoundCall(resolve(job.function), job.args, job.kwargs))  # type: ignore[no-any-return]


def report_abandoned(assignment: Assignment, pool: WorkerPool, position: str) -> None:
    """End an attempt that cannot be stopped, and say where it is."""
    log = logging.getLogger(f"executor_adapter.{pool.name}")
    text = "a %s cannot be stopped and is abandoned; it is stuck here:\n%s"
    log.error(text, pool.name, position, extra={"job_id": assignment.job.job_id})
    assignment.ended_at = pool.supervisor.now()
    pool.supervisor.ended(assignment, ABANDONED)


def bind(job: Job) -> Callable[[], Any]:
    """Return the job's function with its arguments bound.

    Raises:
        InvalidJobError: the function cannot be imported.
    """
    function = resolve(job.function)
    return functools.partial(function, *job.args, **job.kwargs) if job.args or job.kwargs else function


def call_in_job(
    assignment: Assignment, supervisor: PoolSupervisor, cancelled: Callable[[], bool], call: Callable[[], Any]
) -> Outcome:
    """Call the function on this thread, within its job context and scope, and return how it ended.

    A coroutine is run to its end, on an event loop of its own.

    Raises:
        Stop: the attempt was asked to end.
    """
    token = enter_job(functools.partial(job_context, assignment, supervisor, cancelled))
    loan_token = current_slot_loan.set(SlotLoan(supervisor, assignment))
    try:
        if assignment.scope is None:
            return returned(_run_coroutine(assignment, call()))
        with open_scope(assignment.job, assignment.scope):
            return returned(_run_coroutine(assignment, call()))
    except Stop:
        raise
    except BaseException as error:
        return raised(with_own_frames(error))
    finally:
        current_slot_loan.reset(loan_token)
        leave_job(token)


def _run_coroutine(assignment: Assignment, value: Any) -> Any:
    """Return `value`, or if it is a coroutine, the value that it returns."""
    if type(value) is not types.CoroutineType:
        return value
    assignment.coroutine = value
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(value)
    with ThreadPoolExecutor(1) as thread:  # A job that runs inline, in an async test: one thread runs one loop.
        return thread.submit(contextvars.copy_context().run, asyncio.run, value).result()
