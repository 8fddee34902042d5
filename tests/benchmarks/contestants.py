"""The pools that are compared, with warm workers. Our jobs have a timeout and a retry policy, others their defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import pebble

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.config import Settings
from tests.benchmarks.functions import nothing, nothing_on_loop

Submit = Callable[[], Future[Any]]
PoolName = Literal["process", "thread", "coroutine"]

POLICY = RetryPolicy(retry_attempts=3, retry_delay=1.0)


@contextmanager
def ours(pool: PoolName, workers: int) -> Iterator[Submit]:
    """Yield a `submit` that makes a Job with a timeout and a retry policy."""
    function = nothing_on_loop if pool == "coroutine" else nothing
    with JobExecutor(workers, config=Settings()) as executor:
        yield lambda: executor.submit(Job(function=function, pool=pool, max_runtime=60.0, retry=POLICY))


@contextmanager
def bare(pool: Executor) -> Iterator[Submit]:
    """Yield the `submit` of a pool of concurrent.futures."""
    with pool:
        yield lambda: pool.submit(nothing)


@contextmanager
def pebbles(workers: int) -> Iterator[Submit]:
    """Yield the `schedule` of a pebble pool, with a timeout."""
    with pebble.ProcessPool(max_workers=workers) as pool:
        yield lambda: pool.schedule(nothing, timeout=60)


def rate_of(submit: Submit, jobs: int) -> Callable[[], float]:
    """Return a function that measures jobs per second, from the first submission to the last result."""

    def measure() -> float:
        started = time.perf_counter()
        wait([submit() for _ in range(jobs)])
        return jobs / (time.perf_counter() - started)

    return measure


@contextmanager
def warm(pools: dict[str, Any], jobs: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Start all pools and their workers, and yield a function for each that measures its rate."""
    with ExitStack() as stack:
        entered = {name: stack.enter_context(pool) for name, pool in pools.items()}
        for submit in entered.values():
            wait([submit() for _ in range(1_000)])
        yield {name: rate_of(submit, jobs) for name, submit in entered.items()}
