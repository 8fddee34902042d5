"""Tests of the supervisor's loop, with a clock that the test moves."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from executor_adapter.pools.loop import SupervisorLoop
from tests.insides import plain_loop
from tests.waiting import PATIENCE, wait_for


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
    loop = plain_loop(clock)
    yield loop
    loop.close()


def turn(loop: SupervisorLoop) -> None:
    loop._turn(may_sleep=False)


def test_timers_run_when_due_in_order_of_time_then_age(loop: SupervisorLoop, clock: Clock) -> None:
    """Due timers run in order of their time, then of their creation."""
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


@pytest.mark.parametrize("when", [60 * 86_400.0, 1e300])
def test_it_sleeps_until_any_time(when: float) -> None:
    """The loop can sleep until any time, however far away."""
    loop = plain_loop()
    loop.call_at(loop.now() + when, lambda: None)
    thread = threading.Thread(target=loop.run)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    loop.call_soon(loop.stop)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_cancelled_timers_do_not_pile_up(loop: SupervisorLoop) -> None:
    """Cancelled timers are removed before they are due."""
    for _ in range(10_000):
        loop.call_at(1e9, lambda: None).cancel()
    assert len(loop.timers) < 200


def test_a_failing_callback_does_not_end_the_loop(loop: SupervisorLoop, caplog: pytest.LogCaptureFixture) -> None:
    """A call that fails is logged, and the next call runs."""
    ran: list[int] = []

    def fail() -> None:
        raise RuntimeError("no")

    loop.call_soon(fail)
    loop.call_soon(ran.append, 1)
    turn(loop)
    assert ran == [1]
    assert "a call of the supervisor's loop failed" in caplog.text


def test_a_failing_turn_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """A turn of the owner that fails is logged, and the next one makes the calls."""
    ran: list[str] = []

    def fail_once() -> None:
        ran.append("turn")
        if len(ran) == 1:
            raise KeyError(-1)

    loop = plain_loop(before_calls=fail_once)
    with contextlib.closing(loop):
        loop.call_soon(ran.append, "call")
        turn(loop)
        turn(loop)
    assert ran == ["turn", "turn", "call"]
    assert "a turn of the supervisor's loop failed" in caplog.text


def test_only_calls_that_had_arrived_when_a_turn_began_are_made_in_it() -> None:
    """A call that arrives during a turn waits for the next: what was submitted before it is accepted first."""
    order: list[str] = []

    def accept() -> None:
        order.append("accept")
        if len(order) == 1:
            loop.call_soon(order.append, "later call")

    loop = plain_loop(before_calls=accept)
    with contextlib.closing(loop):
        loop.call_soon(order.append, "call")
        turn(loop)
        turn(loop)
    assert order == ["accept", "call", "accept", "later call"]


def test_a_readable_descriptor_is_reported_until_it_is_unwatched(loop: SupervisorLoop) -> None:
    """A readable descriptor is reported until it is unwatched."""
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


def test_what_arrived_during_a_pause_is_read_before_timers_run(loop: SupervisorLoop, clock: Clock) -> None:
    """After a pause past a timer's time, the answer that the timer waited for is read first, and cancels it."""
    reader, writer = os.pipe()
    ran: list[str] = []
    timer = loop.call_at(102, lambda: ran.append("gave up"))

    def read() -> None:
        ran.append(os.read(reader, 10).decode())
        timer.cancel()

    loop.watch(reader, read)
    turn(loop)
    os.write(writer, b"answer")
    clock.time = 110.0
    turn(loop)
    assert ran == ["answer"]
    os.close(reader)
    os.close(writer)


def test_a_pause_while_the_loop_reads_does_not_make_a_timer_due(loop: SupervisorLoop, clock: Clock) -> None:
    """A timer whose time passes while the loop reads waits until what arrived meanwhile is read too."""
    (first, first_writer), (answer, answer_writer) = os.pipe(), os.pipe()
    ran: list[str] = []
    timer = loop.call_at(102, lambda: ran.append("gave up"))

    def pause() -> None:
        ran.append(os.read(first, 10).decode())
        clock.time = 110.0
        os.write(answer_writer, b"answer")

    def read() -> None:
        ran.append(os.read(answer, 10).decode())
        timer.cancel()

    loop.watch(first, pause)
    loop.watch(answer, read)
    os.write(first_writer, b"pause")
    turn(loop)
    turn(loop)
    assert ran == ["pause", "answer"]
    for fd in (first, first_writer, answer, answer_writer):
        os.close(fd)


def test_an_event_is_not_reported_for_a_reused_descriptor(loop: SupervisorLoop) -> None:
    """An event of a closed descriptor is not reported for a new one that has got its number."""
    (one, one_writer), (two, two_writer), (quiet, quiet_writer) = os.pipe(), os.pipe(), os.pipe()
    reported: list[str] = []

    def replace(other: int) -> None:
        reported.append("loud")
        loop.unwatch(other)
        os.dup2(quiet, other)
        loop.watch(other, lambda: reported.append("quiet"))

    loop.watch(one, lambda: replace(two))
    loop.watch(two, lambda: replace(one))
    for writer in (one_writer, two_writer):
        os.write(writer, b"x")
    turn(loop)
    assert reported == ["loud"]
    for fd in (one, one_writer, two, two_writer, quiet, quiet_writer):
        os.close(fd)


def test_an_unwatched_descriptor_is_not_reported_as_writable(loop: SupervisorLoop) -> None:
    """A descriptor that its reader unwatches is not reported as writable in the same turn."""
    ours, theirs = socket.socketpair()
    reported: list[str] = []

    def read() -> None:
        reported.append("readable")
        loop.unwatch(ours.fileno())

    with ours, theirs:
        theirs.send(b"x")
        loop.watch(ours.fileno(), read)
        loop.watch_writable(ours.fileno(), lambda: reported.append("writable"))
        turn(loop)
    assert reported == ["readable"]


def test_an_idle_loop_sleeps_and_any_thread_wakes_it() -> None:
    """An idle loop takes no turns until a thread wakes it."""
    turns: list[float] = []

    def count() -> None:
        turns.append(time.monotonic())

    loop = plain_loop(before_calls=count)
    thread = threading.Thread(target=loop.run)
    thread.start()
    wait_for(lambda: turns)
    time.sleep(0.2)
    assert len(turns) == 1
    loop.call_soon(loop.stop)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_handler_that_interrupts_a_wake_up_wakes_the_loop(
    loop: SupervisorLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler that interrupts a wake-up, before its byte is written, wakes the loop itself."""
    really_write, written = os.write, []

    def handle_signal(fd: int, data: bytes) -> int:
        if not written:
            written.append("by the handler")
            loop.wake()
            assert len(written) == 2
        else:
            written.append("by its wake-up")
        return really_write(fd, data)

    loop._asleep = 1
    monkeypatch.setattr(os, "write", handle_signal)
    loop.wake()
    loop.wake()  # The byte is already written, so a second wake-up writes nothing.
    assert written == ["by the handler", "by its wake-up"]
