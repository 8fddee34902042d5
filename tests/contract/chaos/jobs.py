"""The jobs of a chaos run, and how each must end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from executor_adapter import Job, RetryPolicy, RetryRule
from tests.contract.chaos import functions

MUCH = bytes(1 << 20)

RETRY_CRASHES = RetryPolicy(retry_attempts=200, crash_attempts=200, retry_delay=0.005, max_delay=0.05)
"""Retries a job however often its worker is killed."""
RETRY_KILLS_ONLY = RetryPolicy(
    **{name: getattr(RETRY_CRASHES, name) for name in ("retry_attempts", "crash_attempts", "retry_delay", "max_delay")},
    rules=(RetryRule(codes=("TIMEOUT_ERROR", "MEMORY_LIMIT", "EXECUTION_ERROR"), action="fail"),),
)
"""Retries a job whose worker is killed from outside, but not one that fails by itself."""
RETRY_ONCE = RetryPolicy(retry_attempts=200, crash_attempts=1, retry_delay=0.005, max_delay=0.05)
"""The policy of jobs that kill their own worker: one retry, besides those after the death of its guardian."""


@dataclass(frozen=True, slots=True)
class JobKind:
    """Jobs with the same function. `code`: the error code they must end with; None if they must complete."""

    function: Callable[..., Any]
    weight: float
    code: str | None = None
    retry: RetryPolicy = RETRY_CRASHES
    max_runtime: float = 60.0
    memory_limit: str | None = None
    cancelled: bool = False
    escapes_guardian: bool = False
    """Whether it leaves a process that only a living guardian finds."""


def _hangs(function: Callable[..., Any], weight: float) -> JobKind:
    return JobKind(function, weight, "TIMEOUT_ERROR", RETRY_KILLS_ONLY, max_runtime=0.1)


def _eats(function: Callable[..., Any], weight: float) -> JobKind:
    return JobKind(function, weight, "MEMORY_LIMIT", RETRY_KILLS_ONLY, memory_limit="128MiB")


def _kills_its_worker(function: Callable[..., Any], weight: float) -> JobKind:
    return JobKind(function, weight, "WORKER_CRASHED", RETRY_ONCE)


IN_PROCESSES = (
    JobKind(functions.compute, 600),
    JobKind(functions.nap, 150),
    JobKind(functions.give_much, 20),
    JobKind(functions.take_much, 20),
    JobKind(functions.write_garbage, 60),
    JobKind(functions.close_low_descriptors, 20),
    JobKind(functions.close_streams, 20),
    JobKind(functions.replace_handlers, 20),
    JobKind(functions.leave_state, 40),
    JobKind(functions.expect_state, 40),
    JobKind(functions.leave_child, 10),
    JobKind(functions.leave_daemon, 10),
    JobKind(functions.leave_session, 10, escapes_guardian=True),
    JobKind(functions.fail, 10, "EXECUTION_ERROR", RETRY_KILLS_ONLY),
    _hangs(functions.hang, 6),
    _hangs(functions.hang_ignoring_sigterm, 6),
    _hangs(functions.hang_in_c, 4),
    _hangs(functions.hang_with_daemon, 4),
    _hangs(functions.hang_in_new_session, 4),
    _hangs(functions.hang_stopped, 2),
    _eats(functions.eat_memory, 3),
    _eats(functions.eat_memory_in_child, 3),
    _kills_its_worker(functions.crash, 4),
    _kills_its_worker(functions.exit_at_once, 4),
    _kills_its_worker(functions.close_all_descriptors, 4),
    _kills_its_worker(functions.kill_own_group, 2),
    JobKind(functions.hang, 4, "CANCELLED", RETRY_KILLS_ONLY, cancelled=True),
)
IN_THREADS = (
    JobKind(functions.compute_in_thread, 90),
    JobKind(functions.fail, 5, "EXECUTION_ERROR", RETRY_KILLS_ONLY),
    _hangs(functions.spin_in_thread, 4),
    _hangs(functions.stick_in_thread, 1),
)
ON_LOOPS = (
    JobKind(functions.compute_on_loop, 95),
    _hangs(functions.hang_on_loop, 4),
    _hangs(functions.ignore_cancel_on_loop, 1),
)


def draw_jobs(
    chance: random.Random, *, processes: int, others: int, lock_file: str, guardian_dies: bool
) -> list[tuple[Job, JobKind]]:
    """Return `processes` process jobs, and `others` thread and coroutine jobs each, in random order."""
    kinds = [kind for kind in IN_PROCESSES if not (guardian_dies and kind.escapes_guardian)]
    drawn = list(_draw_in(chance, kinds, processes, "process", lock_file))
    drawn += _draw_in(chance, IN_THREADS, others, "thread", lock_file)
    drawn += _draw_in(chance, ON_LOOPS, others, "coroutine", lock_file)
    chance.shuffle(drawn)
    return drawn


def _draw_in(
    chance: random.Random,
    kinds: list[JobKind] | tuple[JobKind, ...],
    count: int,
    pool: Literal["process", "thread", "coroutine"],
    lock_file: str,
) -> Iterator[tuple[Job, JobKind]]:
    for number, kind in enumerate(chance.choices(kinds, [kind.weight for kind in kinds], k=count)):
        yield _make(kind, number, pool, lock_file), kind


def _make(kind: JobKind, number: int, pool: Literal["process", "thread", "coroutine"], lock_file: str) -> Job:
    args: tuple[Any, ...] = ()
    if kind.code is None:
        args = (lock_file, number) if pool == "process" else (number,)
    if kind.function is functions.take_much:
        args = (*args, MUCH)
    return Job(
        function=kind.function,
        args=args,
        pool=pool,
        max_runtime=kind.max_runtime,
        memory_limit=kind.memory_limit,
        retry=kind.retry,
        job_type=kind.function.__name__,
        metadata={"number": number},
    )
