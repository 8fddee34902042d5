"""Chooses the pool that a job runs in, and checks the job against what that pool can do."""

from __future__ import annotations

from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import (
    GPU,
    LEASING_POOLS,
    Job,
    check_arguments,
    function_reference,
    is_coroutine_function,
    is_generator_function,
)
from executor_adapter.pools.base import WorkerPool
from executor_adapter.pools.kinds import PoolKinds, pool_kind


def check_job(job: Job, kind_of: PoolKinds | None = None, *, has_arguments: bool = False) -> tuple[str, Any]:
    """Return the name of the pool that the job runs in, and what that pool prepared for it.

    `kind_of` knows the pools of the executor; by default those of this system's start method. `has_arguments`: the
    function is called with the job's arguments as they are.

    Raises:
        InvalidJobError: the job asks for what the pool cannot do.
        JobSerializationError: its function or arguments cannot be sent to the pool's workers.
    """
    name, kind = check_limits(job, kind_of)
    if has_arguments:
        check_arguments(job.function, job.args, job.kwargs)
    if is_generator_function(job.function):
        raise InvalidJobError(_generator_refusal(job.function))
    return name, kind.prepare(job)


def check_limits(job: Job, kind_of: PoolKinds | None = None) -> tuple[str, type[WorkerPool]]:
    """Return the name and the kind of the pool that the job runs in, once its limits are found to fit it.

    Raises:
        InvalidJobError: the pool cannot apply a limit of the job.
    """
    name: str = job.pool
    if name == "auto":
        name = "coroutine" if is_coroutine_function(job.function) else "thread"
    kind = (kind_of or pool_kind)(name)
    if job.memory_limit is not None and not kind.can_limit_memory:
        raise InvalidJobError(_memory_refusal(name))
    need = "fresh_worker=True needs a process" if job.fresh_worker else ""
    if job.resources is not None and GPU in job.resources:
        need = "resources: a GPU is given to a process, by CUDA_VISIBLE_DEVICES"
    if need and kind.is_here and not kind.can_set_environment:
        raise InvalidJobError(f"{need}, and pool={name!r} has none of its own: use pool='process'")
    has_no_books = not kind.is_here and name not in LEASING_POOLS
    if job.resources is not None and has_no_books:
        raise InvalidJobError(
            f"resources={dict(job.resources)}: nobody counts what the hosts of pool={name!r} have: leave them out, and "
            "let the slots of each host limit what runs there, or use pool='dask' or pool='ray'"
        )
    if job.keep and has_no_books:
        raise InvalidJobError(
            f"keep=True: pool={name!r} has no place where a result stays: leave it out, or use pool='dask' or "
            "pool='ray'"
        )
    if job.soft_timeout is not None:
        _check_soft_timeout(job.soft_timeout, job.max_runtime, name, kind)
    return name, kind


def _generator_refusal(function: Any) -> str:
    return (
        f"{function_reference(function)} is a generator function: calling it makes a generator and runs nothing. "
        "Return a list instead, or submit a function that iterates over it"
    )


def _memory_refusal(name: str) -> str:
    if name == "process":
        return (
            "memory_limit needs executor.start_method='guardian', which needs Linux, and here it is 'spawn': "
            "leave it out, or let the function limit itself (resource.setrlimit)"
        )
    return f"memory_limit needs a process of its own, and pool={name!r} has none: use pool='process'"


def _check_soft_timeout(soft: float, hard: float | None, name: str, kind: type[WorkerPool]) -> None:
    if not kind.can_stop_soft:
        raise InvalidJobError(f"soft_timeout={soft} is not supported in pool={name!r}: use 'thread' or 'process'")
    if hard is not None and soft >= hard:
        raise InvalidJobError(f"soft_timeout={soft} leaves no time before max_runtime={hard}: use a smaller value")
