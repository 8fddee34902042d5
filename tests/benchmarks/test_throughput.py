"""How fast jobs pass, side by side with pools that keep none of their promises; medians, as ratios, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import pebble
import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings

pytestmark = pytest.mark.bench

Submit = Callable[[], Future[Any]]
WORKERS = 2
JOBS = 5_000
ROUNDS = 5


def nothing() -> None: ...


async def nothing_async() -> None: ...


@contextmanager
def ours(pool: Literal["coroutine", "thread", "process"]) -> Iterator[Submit]:
    """Each job with a limit and a retry policy, as users have them."""
    function = nothing_async if pool == "coroutine" else nothing
    with JobExecutor(WORKERS, config=Settings()) as executor:
        yield lambda: executor.submit(Job(function=function, pool=pool, max_runtime=60, retry_attempts=3))


@contextmanager
def bare(pool: ThreadPoolExecutor | ProcessPoolExecutor) -> Iterator[Submit]:
    with pool:
        yield lambda: pool.submit(nothing)


@contextmanager
def pebbles() -> Iterator[Submit]:
    with pebble.ProcessPool(max_workers=WORKERS) as pool:
        yield lambda: pool.schedule(nothing, timeout=60)


def jobs_per_second(submit: Submit) -> float:
    started = time.perf_counter()
    wait([submit() for _ in range(JOBS)])
    return JOBS / (time.perf_counter() - started)


def compare(pools: dict[str, AbstractContextManager[Submit]]) -> dict[str, float]:
    """Median jobs a second of each, measured in turn so that what else the machine does hits all alike."""
    rates: dict[str, list[float]] = {name: [] for name in pools}
    entered = {name: pool.__enter__() for name, pool in pools.items()}
    for submit in entered.values():
        submit().result()
    for _ in range(ROUNDS):
        for name, submit in entered.items():
            rates[name].append(jobs_per_second(submit))
    for pool in pools.values():
        pool.__exit__(None, None, None)
    return {name: statistics.median(measured) for name, measured in rates.items()}


def report(rates: dict[str, float]) -> None:
    own = next(iter(rates))
    print()
    for name, rate in rates.items():
        print(f"{name:<32} {rate:>10,.0f} jobs/s    {own} / it = {rates[own] / rate:.2f}")


def test_processes() -> None:
    """No-op jobs in processes, beside concurrent.futures and pebble."""
    rates = compare(
        {
            "process": ours("process"),
            "concurrent.futures processes": bare(ProcessPoolExecutor(WORKERS)),
            "pebble": pebbles(),
        }
    )
    report(rates)
    assert min(rates.values()) > 0


def test_threads_and_coroutines() -> None:
    """No-op jobs in threads beside bare ones, and in coroutines."""
    rates = compare(
        {
            "thread": ours("thread"),
            "coroutine": ours("coroutine"),
            "concurrent.futures threads": bare(ThreadPoolExecutor(WORKERS)),
        }
    )
    report(rates)
    assert min(rates.values()) > 0
