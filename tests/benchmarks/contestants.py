"""Pools to be measured side by side, warm: ours with limit and policy on every job, others as their users have them."""

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
    """`submit` of a Job that is made for it, with a timeout and a retry policy."""
    function = nothing_on_loop if pool == "coroutine" else nothing
    with JobExecutor(workers, config=Settings()) as executor:
        yield lambda: executor.submit(Job(function=function, pool=pool, max_runtime=60.0, retry=POLICY))


@contextmanager
def bare(pool: Executor) -> Iterator[Submit]:
    with pool:
        yield lambda: pool.submit(nothing)


@contextmanager
def pebbles(workers: int) -> Iterator[Submit]:
    with pebble.ProcessPool(max_workers=workers) as pool:
        yield lambda: pool.schedule(nothing, timeout=60)


def rate_of(submit: Submit, jobs: int) -> Callable[[], float]:
    """What measures jobs a second, from the first submission to the last result."""

    def measure() -> float:
        started = time.perf_counter()
        wait([submit() for _ in range(jobs)])
        return jobs / (time.perf_counter() - started)

    return measure


@contextmanager
def warm(pools: dict[str, Any], jobs: int) -> Iterator[dict[str, Callable[[], float]]]:
    """Enter all, use each until its workers are up, and give what measures the rate of each."""
    with ExitStack() as stack:
        entered = {name: stack.enter_context(pool) for name, pool in pools.items()}
        for submit in entered.values():
            wait([submit() for _ in range(1_000)])
        yield {name: rate_of(submit, jobs) for name, submit in entered.items()}
