"""The supervisor's loop, with a clock that the test moves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from executor_adapter.loop import SupervisorLoop


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[SupervisorLoop]:
    loop = SupervisorLoop(clock)
    yield loop
    loop.close()


def turn(loop: SupervisorLoop) -> None:
    loop.before_sleep = lambda: 0.0  # long due: it does not sleep
    loop._turn()


def test_timers_run_when_due_in_order_of_time_then_age(loop: SupervisorLoop, clock: Clock) -> None:
    ran: list[str] = []
    loop.call_at(103, lambda: ran.append("c"))
    loop.call_at(101, lambda: ran.append("a"))
    loop.call_at(101, lambda: ran.append("b"))
    turn(loop)
    assert ran == []
    clock.time = 101.0
    turn(loop)
    assert ran == ["a", "b"]
    clock.time = 200.0
    turn(loop)
    assert ran == ["a", "b", "c"]


def test_cancelled_timers_do_not_pile_up(loop: SupervisorLoop) -> None:
    for _ in range(10_000):
        loop.call_at(1e9, lambda: None).cancel()
    assert len(loop._timers) < 200


def test_a_failing_callback_does_not_end_the_loop(loop: SupervisorLoop, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def fail() -> None:
        raise RuntimeError("no")

    loop.call_soon(fail)
    loop.call_soon(ran.append, 1)
    turn(loop)
    assert ran == [1]
    assert "a call of the supervisor's loop failed" in caplog.text


def test_a_failing_end_of_turn_does_not_end_the_loop(loop: SupervisorLoop, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> float:
        raise KeyError(-1)

    loop.before_sleep = fail
    loop._turn()
    assert "the end of a turn of the supervisor's loop failed" in caplog.text


def test_what_was_submitted_before_a_call_is_seen_before_it(loop: SupervisorLoop) -> None:
    order: list[str] = []
    loop.before_calls = lambda: order.append("accept")
    loop.call_soon(order.append, "call")
    turn(loop)
    assert order == ["accept", "call"]


def test_a_readable_descriptor_is_reported_until_it_is_unwatched(loop: SupervisorLoop) -> None:
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def read() -> None:
        seen.append(os.read(reader, 10))
        loop.unwatch(reader)

    loop.watch(reader, read)
    os.write(writer, b"x")
    turn(loop)
    os.write(writer, b"y")
    turn(loop)
    assert seen == [b"x"]
    os.close(reader)
    os.close(writer)


def test_an_idle_loop_sleeps_and_any_thread_wakes_it() -> None:
    loop = SupervisorLoop()
    turns: list[float] = []

    def count() -> float:
        turns.append(time.monotonic())
        return float("inf")

    loop.before_sleep = count
    thread = threading.Thread(target=loop.run)
    thread.start()
    time.sleep(0.2)
    assert len(turns) == 1
    loop.call_soon(loop.stop)
    thread.join(5)
    assert not thread.is_alive()
