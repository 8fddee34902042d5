"""The one way in which tests reach inside an executor, and make parts of one."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.supervision.intake import JobIntake
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import Dispatcher, SlotLimits
from executor_adapter.supervision.supervisor import Supervisor


def plain_loop(
    clock: Callable[[], float] = time.monotonic, *, before_calls: Callable[[], object] = lambda: None
) -> SupervisorLoop:
    """Return a loop whose turns call `before_calls`, and make its calls."""

    def turn() -> float:
        before_calls()
        loop.run_calls()
        return math.inf

    loop = SupervisorLoop(turn, clock)
    return loop


def make_dispatcher(
    limits: SlotLimits,
    capacity: Capacity | None = None,
    *,
    now: Callable[[], float] = time.monotonic,
    pool_of: Callable[[Job], Any] | None = None,
) -> Dispatcher:
    """Return a dispatcher of no pools, which knows no limits of memory and tools."""
    pools: Any = SimpleNamespace(made={}, of=pool_of)
    return Dispatcher(
        stopped_loop(now),
        JobIntake(None, lambda: True, contextlib.nullcontext),
        pools,
        limits,
        read_capacity=lambda: capacity or Capacity(),
        memory_guard=None,
        tool_limits={},
    )


def stopped_loop(now: Callable[[], float], call_at: Callable[..., object] = lambda *call: None) -> Any:
    """Return a loop that does not run; `call_at` gets what is due some time."""
    return SimpleNamespace(now=now, call_at=call_at)


def supervisor_of(executor: JobExecutor) -> Supervisor:
    """Return the supervisor of an executor: tests block its thread, and look at its pools and its state."""
    return executor._supervisor


def callers_of_store(executor: JobExecutor) -> int:
    """Return how many callers of an executor wait for its store."""
    assert executor._persistence is not None
    return len(executor._persistence.recorder._waiting)


def is_asleep(executor: JobExecutor) -> bool:
    """Return whether the supervisor of an executor waits for something to do."""
    return bool(executor._supervisor._loop._asleep)


def count_as_short(executor: JobExecutor, function: Callable[..., Any]) -> None:
    """Let an executor take a function for one that ends at once, however long it took. On the supervisor's thread."""
    executor._supervisor._run_times.of(function).seconds = 0.0


def cancel_queued(job: Job) -> None:
    """Let a queued job be cancelled, as the supervisor does it."""
    job.advance(JobStatus.CANCELLED)
    job.live.wants_slot = False
