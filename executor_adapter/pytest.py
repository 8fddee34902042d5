"""A pytest plugin with fixtures for tests of jobs. Every pytest run loads it, so it imports nothing before it is used.

def test_a_failed_collection_is_retried_after_a_minute(inline_executor, inline_clock):
    future = inline_executor.call(collect)
    inline_clock.advance(66)
    assert future.result(timeout=0) == 1
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from executor_adapter.testing import AttemptLimit, FakeClock, InlineExecutor

__all__ = ["inline_clock", "inline_executor", "one_attempt", "set_testing"]


@pytest.fixture
def inline_executor() -> Iterator[InlineExecutor]:
    """An InlineExecutor, also for the job tasks that the test calls; jobs that are left at its end are cancelled."""
    from executor_adapter.testing import InlineExecutor

    with InlineExecutor() as executor:
        yield executor
        executor.shutdown(timeout=0)


@pytest.fixture
def inline_clock(inline_executor: InlineExecutor) -> FakeClock:
    """The clock of `inline_executor`: `inline_clock.advance(60)` does what is due within the next minute."""
    return inline_executor.clock


@pytest.fixture
def set_testing() -> Iterator[Callable[..., AttemptLimit]]:
    """`executor_adapter.testing.set_testing`: `set_testing(attempts=2)` applies until the end of the test."""
    from executor_adapter import testing

    with contextlib.ExitStack() as limits:

        def set_until_end(*, attempts: int = 1) -> AttemptLimit:
            limit = testing.set_testing(attempts=attempts)
            limits.callback(limit.restore)
            return limit

        yield set_until_end


@pytest.fixture
def one_attempt(set_testing: Callable[..., AttemptLimit]) -> None:
    """One attempt for each job, whatever its policy; `usefixtures = ["one_attempt"]` sets it for all tests."""
    set_testing(attempts=1)
