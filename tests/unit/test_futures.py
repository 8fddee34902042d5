"""JobFuture: whoever waits, in whichever way and however late, is told once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Iterator

import pytest

from executor_adapter import Job
from executor_adapter.futures import JobFuture
from executor_adapter.testing import InlineExecutor


@pytest.fixture
def executor() -> Iterator[InlineExecutor]:
    with InlineExecutor() as executor:
        yield executor


@pytest.fixture
def _switch_threads_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def future_of(executor: InlineExecutor) -> JobFuture:
    return JobFuture(Job(function=print), executor._supervisor)


def test_a_future_that_nobody_waits_for_makes_nothing_to_wait_with(executor: InlineExecutor) -> None:
    future = future_of(executor)
    future.settle(1, None)
    assert future.done()
    assert vars(future)["_made_waiters"] is None
    assert vars(future)["_made_callbacks"] is None
    assert future.result(timeout=0) == 1


def test_an_error_is_raised_and_given(executor: InlineExecutor) -> None:
    future = future_of(executor)
    future.settle(None, KeyError("k"))
    assert isinstance(future.exception(timeout=0), KeyError)
    with pytest.raises(KeyError):
        future.result(timeout=0)


def test_waiting_has_its_timeout(executor: InlineExecutor) -> None:
    with pytest.raises(TimeoutError):
        future_of(executor).result(timeout=0.01)


@pytest.mark.usefixtures("_switch_threads_often")
def test_no_wake_up_is_lost_whoever_comes_first(executor: InlineExecutor) -> None:
    futures = [future_of(executor) for _ in range(3000)]
    called: list[int] = []
    results: list[int] = []

    def settle() -> None:
        for number, future in enumerate(futures):
            future.settle(number, None)

    def add_callbacks() -> None:
        for future in futures:
            future.add_done_callback(lambda done: called.append(done.result()))

    def take_results() -> None:
        results.extend(future.result(timeout=10) for future in futures)

    threads = [threading.Thread(target=target) for target in (settle, add_callbacks, take_results)]
    for thread in threads:
        thread.start()
    done, pending = concurrent.futures.wait(futures, timeout=10)
    for thread in threads:
        thread.join(10)
    assert (len(done), len(pending)) == (3000, 0)
    assert results == list(range(3000))
    assert sorted(called) == list(range(3000))


@pytest.mark.usefixtures("_switch_threads_often")
def test_waiting_for_all_waits_for_all(executor: InlineExecutor) -> None:
    for _ in range(300):
        futures = [future_of(executor) for _ in range(20)]
        thread = threading.Thread(target=lambda: [future.settle(1, None) for future in futures])  # noqa: B023
        thread.start()
        done, pending = concurrent.futures.wait(futures, timeout=10)
        assert (len(done), len(pending)) == (20, 0)
        thread.join(10)


def test_as_completed_and_asyncio_take_it_as_any_future(executor: InlineExecutor) -> None:
    futures = [future_of(executor) for _ in range(3)]
    threading.Timer(0.05, lambda: [future.settle(n, None) for n, future in enumerate(futures)]).start()
    assert {f.result() for f in concurrent.futures.as_completed(futures, timeout=10)} == {0, 1, 2}

    async def main() -> int:
        future = future_of(executor)
        threading.Timer(0.05, future.settle, (7, None)).start()
        result: int = await asyncio.wrap_future(future)
        return result

    assert asyncio.run(main()) == 7


def test_unknown_attributes_are_still_unknown(executor: InlineExecutor) -> None:
    with pytest.raises(AttributeError, match="no attribute 'reslut'"):
        future_of(executor).reslut  # noqa: B018
