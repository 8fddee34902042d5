"""Tests of JobFuture: every waiter is woken once, whenever it begins to wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Iterator

import pytest

from executor_adapter import Job
from executor_adapter.pools.transport.envelope import raised, returned
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.thread import CallThread
from executor_adapter.testing import InlineExecutor
from tests.insides import supervisor_of
from tests.waiting import PATIENCE


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
    return JobFuture(Job(function=print), supervisor_of(executor).futures)


def test_a_future_without_waiters_creates_no_lock(executor: InlineExecutor) -> None:
    """A future creates no condition or lock of its own until someone waits for it."""
    future = future_of(executor)
    future.settle(returned(1))
    assert future.done()
    assert vars(future)["_made_waiters"] is None
    assert vars(future)["_made_callbacks"] is None
    assert future.result(timeout=0) == 1


def test_an_error_is_raised_and_returned(executor: InlineExecutor) -> None:
    """`result` raises the job's error and `exception` returns it."""
    future = future_of(executor)
    future.settle(raised(KeyError("k")))
    assert isinstance(future.exception(timeout=0), KeyError)
    with pytest.raises(KeyError):
        future.result(timeout=0)


def test_result_has_a_timeout(executor: InlineExecutor) -> None:
    """`result` raises TimeoutError after its timeout."""
    with pytest.raises(TimeoutError):
        future_of(executor).result(timeout=0.01)


@pytest.mark.usefixtures("_switch_threads_often")
def test_no_wake_up_is_lost(executor: InlineExecutor) -> None:
    """A waiter is woken whether it starts before or after the future is settled."""
    futures = [future_of(executor) for _ in range(3000)]
    called: list[int] = []
    results: list[int] = []

    def settle() -> None:
        for number, future in enumerate(futures):
            future.settle(returned(number))

    def add_callbacks() -> None:
        for future in futures:
            future.add_done_callback(lambda done: called.append(done.result()))

    def take_results() -> None:
        results.extend(future.result(timeout=PATIENCE) for future in futures)

    threads = [threading.Thread(target=target) for target in (settle, add_callbacks, take_results)]
    for thread in threads:
        thread.start()
    done, pending = concurrent.futures.wait(futures, timeout=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert (len(done), len(pending)) == (3000, 0)
    assert results == list(range(3000))
    assert sorted(called) == list(range(3000))


@pytest.mark.usefixtures("_switch_threads_often")
def test_waiting_for_all_waits_for_all(executor: InlineExecutor) -> None:
    """`concurrent.futures.wait` waits for all futures of an executor."""
    for _ in range(300):
        futures = [future_of(executor) for _ in range(20)]
        thread = threading.Thread(target=lambda: [future.settle(returned(1)) for future in futures])  # noqa: B023
        thread.start()
        done, pending = concurrent.futures.wait(futures, timeout=PATIENCE)
        assert (len(done), len(pending)) == (20, 0)
        thread.join(PATIENCE)


def test_as_completed_and_asyncio_accept_it(executor: InlineExecutor) -> None:
    """`as_completed` and `asyncio.wrap_future` accept a JobFuture."""
    futures = [future_of(executor) for _ in range(3)]
    threading.Timer(0.05, lambda: [future.settle(returned(n)) for n, future in enumerate(futures)]).start()
    assert {f.result() for f in concurrent.futures.as_completed(futures, timeout=PATIENCE)} == {0, 1, 2}

    async def main() -> int:
        future = future_of(executor)
        threading.Timer(0.05, future.settle, (returned(7),)).start()
        result: int = await asyncio.wrap_future(future)
        return result

    assert asyncio.run(main()) == 7


def test_an_unknown_attribute_raises(executor: InlineExecutor) -> None:
    """An unknown attribute of a future raises AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'reslut'"):
        future_of(executor).reslut  # noqa: B018


def test_a_failing_callback_does_not_stop_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that raises does not keep later callbacks from being called."""
    callbacks, called = CallThread("callbacks"), []

    def end_the_program() -> None:
        sys.exit("a job failed")

    for callback in (end_the_program, lambda: 1 / 0, lambda: called.append(1)):
        callbacks.call(callback)
    callbacks.close()
    callbacks.wait(PATIENCE)
    assert called == [1]
    assert [record.message for record in caplog.records] == ["a callback of a job's future failed"] * 2


def test_a_shutdown_waits_for_callbacks_for_a_limited_time(caplog: pytest.LogCaptureFixture) -> None:
    """A shutdown waits for all callbacks, and only for a limited time for one that hangs."""
    callbacks, called, release = CallThread("callbacks"), [], threading.Event()
    for number in range(4):
        callbacks.call(lambda number=number: called.append(number) or release.wait(0.2))  # type: ignore[misc]
    callbacks.close()
    assert callbacks.wait(0.5)
    assert (called, caplog.records) == ([0, 1, 2, 3], [])

    hanging = CallThread("callbacks")
    hanging.call(release.wait)
    hanging.close()
    assert not hanging.wait(0.5)
    release.set()


def test_a_callback_may_wait_for_the_callbacks() -> None:
    """A callback may wait for the other callbacks without waiting for itself."""
    callbacks, waited = CallThread("callbacks"), threading.Event()

    def wait() -> None:
        callbacks.wait(PATIENCE)
        waited.set()

    callbacks.call(wait)
    assert waited.wait(PATIENCE)
    callbacks.close()


def test_a_callback_thread_that_cannot_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the callback thread cannot start, it is started with a later callback."""
    callbacks, called = CallThread("callbacks"), threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            callbacks.start()
    callbacks.call(called.set)
    assert called.wait(PATIENCE)
    callbacks.close()
