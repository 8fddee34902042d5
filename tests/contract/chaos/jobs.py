"""The jobs of a storm, and how each must end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from executor_adapter import Job, RetryPolicy, RetryRule
from tests.contract.chaos import functions

MUCH = bytes(1 << 20)

HONEST = RetryPolicy(retry_attempts=200, crash_attempts=200, retry_delay=0.005, max_delay=0.05)
"""However often their worker is killed, they are tried again."""
PATIENT = RetryPolicy(
    **{name: getattr(HONEST, name) for name in ("retry_attempts", "crash_attempts", "retry_delay", "max_delay")},
    rules=(RetryRule(codes=("TIMEOUT_ERROR", "MEMORY_LIMIT", "EXECUTION_ERROR"), action="fail"),),
)
"""Tried again where a stranger killed them, so that each ends by its own fault."""
ONCE_MORE = RetryPolicy(retry_attempts=1, crash_attempts=1, retry_delay=0.005)
"""Of those that kill their worker themselves."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Jobs that do the same. `code`: what they must end with; None: they complete."""

    function: Callable[..., Any]
    weight: float
    code: str | None = None
    retry: RetryPolicy = HONEST
    max_runtime: float = 60.0
    memory_limit: str | None = None
    cancelled: bool = False
    escapes_guardian: bool = False
    """It leaves a process that only a living guardian finds."""


def _hangs(function: Callable[..., Any], weight: float) -> Kind:
    return Kind(function, weight, "TIMEOUT_ERROR", PATIENT, max_runtime=0.1)


def _eats(function: Callable[..., Any], weight: float) -> Kind:
    return Kind(function, weight, "MEMORY_LIMIT", PATIENT, memory_limit="128MiB")


def _kills_its_worker(function: Callable[..., Any], weight: float) -> Kind:
    return Kind(function, weight, "WORKER_CRASHED", ONCE_MORE)


IN_PROCESSES = (
    Kind(functions.compute, 600),
    Kind(functions.nap, 150),
    Kind(functions.give_much, 20),
    Kind(functions.take_much, 20),
    Kind(functions.write_garbage, 60),
    Kind(functions.close_low_descriptors, 20),
    Kind(functions.close_streams, 20),
    Kind(functions.replace_handlers, 20),
    Kind(functions.leave_child, 10),
    Kind(functions.leave_daemon, 10),
    Kind(functions.leave_session, 10, escapes_guardian=True),
    Kind(functions.fail, 10, "EXECUTION_ERROR", PATIENT),
    _hangs(functions.hang, 6),
    _hangs(functions.hang_deaf, 6),
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
    Kind(functions.hang, 4, "CANCELLED", PATIENT, cancelled=True),
)
IN_THREADS = (
    Kind(functions.compute_in_thread, 90),
    Kind(functions.fail, 5, "EXECUTION_ERROR", PATIENT),
    _hangs(functions.spin_in_thread, 4),
    _hangs(functions.stick_in_thread, 1),
)
ON_LOOPS = (
    Kind(functions.compute_on_loop, 95),
    _hangs(functions.hang_on_loop, 4),
    _hangs(functions.refuse_to_end_on_loop, 1),
)


def draw(
    chance: random.Random, *, processes: int, others: int, ledger: str, guardian_dies: bool
) -> list[tuple[Job, Kind]]:
    """`processes` jobs in processes, and `others` each in threads and in coroutines, in no order."""
    kinds = [kind for kind in IN_PROCESSES if not (guardian_dies and kind.escapes_guardian)]
    drawn = list(_draw_in(chance, kinds, processes, "process", ledger))
    drawn += _draw_in(chance, IN_THREADS, others, "thread", ledger)
    drawn += _draw_in(chance, ON_LOOPS, others, "coroutine", ledger)
    chance.shuffle(drawn)
    return drawn


def _draw_in(
    chance: random.Random,
    kinds: list[Kind] | tuple[Kind, ...],
    count: int,
    pool: Literal["process", "thread", "coroutine"],
    ledger: str,
) -> Iterator[tuple[Job, Kind]]:
    for number, kind in enumerate(chance.choices(kinds, [kind.weight for kind in kinds], k=count)):
        yield _make(kind, number, pool, ledger), kind


def _make(kind: Kind, number: int, pool: Literal["process", "thread", "coroutine"], ledger: str) -> Job:
    args: tuple[Any, ...] = ()
    if kind.code is None:
        args = (ledger, number) if pool == "process" else (number,)
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
