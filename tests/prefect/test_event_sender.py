"""The sender: never too much on its way, nothing lost, and the server's opinion corrected where it is wrong."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import StateType

from executor_adapter.prefect.mirror.event_feed import MOST_UNLISTED, STEP
from executor_adapter.prefect.mirror.event_sender import EventSender
from executor_adapter.prefect.mirror.pacing import (
    AT_THE_END,
    BATCH,
    FIRST_WINDOW,
    LARGEST_WINDOW,
    LEAST_OFTEN,
    LOOKS,
    MOST_OFTEN,
    SMALLEST_WINDOW,
    SendWindow,
)
from executor_adapter.prefect.mirror.server_api import FaultError, Recorded
from executor_adapter.prefect.mirror.state_events import Change, FlowRunFacts, StateEvent, quoted, state_event
from executor_adapter.prefect.mirror.states import StateKind
from executor_adapter.testing import FakeClock
from tests.prefect.fake_server import FakeServer

PENDING, COMPLETED = StateKind(StateType.PENDING, "Pending"), StateKind(StateType.COMPLETED, "Completed")
FAILED = StateKind(StateType.FAILED, "Failed")


class Facts(NamedTuple):
    """Of a task run; all but the id as JSON."""

    id: str
    name: str = '"name"'
    task_key: str = '"key"'
    dynamic_key: str = '"job"'
    policy: str = "{}"


def event(kind: StateKind, at: float = 1_000_000.0, task_run_id: str | None = None) -> StateEvent:
    return state_event(Facts(task_run_id or str(uuid4())), Change(kind, at), FlowRunFacts())


class File:
    """Takes the part of a file of the spool."""

    def __init__(self) -> None:
        self.known = 0

    def recorded(self) -> None:
        self.known += 1


def spooled(kind: StateKind, at: float = 1_000_000.0) -> StateEvent:
    return StateEvent.parse(event(kind, at).body, origin=File())


class Road:
    """A sender between a list of events and a recorder, on a clock of its own."""

    def __init__(self, events: list[StateEvent]) -> None:
        self.server = FakeServer()
        self.clock = FakeClock()
        self.events = deque(events)
        self.lock = threading.Lock()
        self.sender = EventSender(self._next, self.lock, clock=self.clock, wall=lambda: 2_000_000.0)

    def _next(self, most: int) -> list[StateEvent]:
        return [self.events.popleft() for _ in range(min(most, len(self.events)))]

    def go(self, seconds: float, *, a_second: int | None = None, step: float = 0.5) -> None:
        """Let time pass; the server records so many events a second, None: none."""
        for _ in range(int(seconds / step)):
            with self.lock, contextlib.suppress(httpx.HTTPError):
                self.sender.turn(self.server)  # type: ignore[arg-type]
            if a_second:
                self.server.record(int(a_second * step))
            self.clock.advance(step)


def test_all_arrive_and_are_known_to() -> None:
    road = Road([event(COMPLETED) for _ in range(1_000)])
    road.go(20, a_second=1_000)
    assert road.sender.is_idle
    assert (road.sender.recorded, road.sender.resent, len(road.server.known)) == (1_000, 0, 1_000)


def test_a_slow_server_is_never_given_much() -> None:
    """What is on its way shrinks until it is recorded within seconds."""
    road = Road([event(COMPLETED) for _ in range(3_000)])
    road.go(40, a_second=30)
    assert road.server.most_queued <= FIRST_WINDOW
    road.server.most_queued = 0
    road.go(20, a_second=30)
    assert SMALLEST_WINDOW / 2 < road.server.most_queued < FIRST_WINDOW / 2


def test_a_fast_server_gets_more_but_not_all() -> None:
    road = Road([event(COMPLETED) for _ in range(20_000)])
    road.go(10, a_second=6_000)
    assert FIRST_WINDOW < road.server.most_queued <= LARGEST_WINDOW
    road.go(10, a_second=6_000)
    assert road.sender.recorded == 20_000


@pytest.mark.parametrize("lists", [200, 0])
def test_a_list_of_events_that_is_slower_than_the_recorder_is_not_overrun(lists: int) -> None:
    """It takes the same events from a queue of its own. One that lists none at all is waited for, but not for ever."""
    road = Road([event(COMPLETED) for _ in range(20_000)])
    road.server.unlisted = deque()
    for _ in range(300):
        road.go(0.5, a_second=6_000)
        road.server.list_some(lists)
    assert road.sender.recorded == 20_000
    if lists:
        assert MOST_UNLISTED - STEP < road.server.most_unlisted <= MOST_UNLISTED + BATCH


def test_in_a_hurry_all_is_sent_at_once() -> None:
    """However slow the server has shown itself to be; but never more than its queues hold."""
    road = Road([event(COMPLETED) for _ in range(1_000)])
    road.go(20, a_second=30)
    assert len(road.server.queue) < FIRST_WINDOW
    road.sender.hurry()
    road.go(0.5)
    assert not road.events
    road.events.extend(event(COMPLETED) for _ in range(2 * LARGEST_WINDOW))
    road.go(10, a_second=30)
    assert FIRST_WINDOW < road.server.most_queued <= LARGEST_WINDOW


def test_what_is_on_its_way_outlasts_the_time_between_two_looks() -> None:
    """So the server always has something to record, however fast it is."""
    pace = SendWindow()
    for seconds in (0.0, 0.5, 1.0, 2.0, 3.0, 10.0):
        pace.confirmed(1_000.0, 1_000.0 + seconds, was_full=False)
        assert pace.look_seconds(1_000.0 + seconds) == min(LEAST_OFTEN, max(MOST_OFTEN, seconds / LOOKS))


def test_the_fewer_are_left_the_more_often_they_are_looked_at() -> None:
    """Somebody waits for the last. A server that then stalls is not asked ten times a second for ever."""
    pace = SendWindow()
    pace.confirmed(1_000.0, 1_003.0, was_full=False)
    pace.arrived(1_500, 1_000.0, 1_003.0)
    looks = [pace.look_seconds(1_003.0, last=last) for last in (2_000, 500, 100, 1)]
    assert looks == [1.0, pytest.approx(1 / 3), AT_THE_END, AT_THE_END]
    assert pace.look_seconds(1_005.0, last=1) == 0.25
    assert pace.look_seconds(1_030.0, last=1) == 1.0


def test_a_server_that_writes_many_at_once_need_not_show_that_it_is_quick() -> None:
    """It says so. What it then shows counts more."""
    quick, slow, shown = SendWindow(), SendWindow(), SendWindow()
    quick.expect(500)
    slow.expect(1)
    shown.confirmed(1_000.0, 1_010.0, was_full=True)
    shown.expect(500)
    assert (quick.window, slow.window) == (1_500, FIRST_WINDOW)
    assert shown.window < FIRST_WINDOW


def test_one_that_writes_many_at_once_never_runs_dry() -> None:
    """However long a transaction takes: one is written, and one lies ready, of as many as it writes at once."""
    road = Road([event(COMPLETED) for _ in range(10_000)])
    road.server.at_once = 500
    road.go(5)
    assert len(road.server.queue) == 3 * 500
    left = []
    for _ in range(10):
        road.server.record(500)
        road.go(1.0)
        left.append(len(road.server.queue))
    assert min(left) == 3 * 500


def test_what_is_sent_is_sent_in_few_requests() -> None:
    """Each disturbs a server at its work, so there is none for the room that one event left."""
    road = Road([event(COMPLETED) for _ in range(5_000)])
    road.go(30, a_second=100)
    assert min(road.server.requests) >= SMALLEST_WINDOW // 3


def test_what_a_killed_server_lost_is_told_again() -> None:
    """The state's own time is kept, and no state is there twice."""
    events = [event(PENDING, 1_000_000.0), event(COMPLETED, 1_000_001.0)]
    road = Road(events)
    road.go(0.5)
    road.server.lose()
    road.go(60, a_second=100)
    assert (road.sender.recorded, road.sender.resent) == (1, 1)
    assert road.server.known[events[1].task_run_id] == Recorded("Completed", 1_000_001.0)
    assert road.server.states == {events[0].task_run_id: ["Pending"], events[1].task_run_id: ["Completed"]}


def test_another_opinion_of_the_server_is_corrected_with_a_newer_time() -> None:
    """The clean-up of a cancelled flow run stamps task runs Cancelled, with a time that an old event cannot beat."""
    final = event(COMPLETED)
    road = Road([final])
    road.server.known[final.task_run_id] = Recorded("Cancelled", 1_500_000.0)
    road.go(30, a_second=100)
    assert road.server.known[final.task_run_id] == Recorded("Completed", 2_000_000.0)
    assert road.sender.recorded == 1


@pytest.mark.parametrize(
    "newer",
    [
        Recorded("Completed", 1_500_000.0),
        Recorded("Running", 1_500_000.0),
        Recorded("Cancelled", 1_500_000.0, "CANCELLED: by its user"),
    ],
)
def test_what_comes_from_the_spool_undoes_nothing_newer(newer: Recorded) -> None:
    """The job was run again since, under the same id: what its task run is in by now is true."""
    old = spooled(FAILED)
    road = Road([])
    road.sender.left_behind.append(old)
    road.server.known[old.task_run_id] = newer
    road.go(30, a_second=100)
    assert road.server.known[old.task_run_id] == newer
    assert (road.sender.is_idle, road.sender.resent, old.origin.known) == (True, 0, 1)


def test_what_comes_from_the_spool_is_told_after_a_clean_up() -> None:
    old = spooled(FAILED)
    road = Road([])
    road.sender.left_behind.append(old)
    road.server.known[old.task_run_id] = Recorded("Cancelled", 1_500_000.0, "The parent flow run was cancelled.")
    road.go(30, a_second=100)
    assert road.server.known[old.task_run_id] == Recorded("Failed", 2_000_000.0)
    assert old.origin.known == 1


def test_nothing_waits_for_the_spool() -> None:
    """What happens meanwhile is recorded behind one request at most, however much the spool holds. What the server had
    got of that is not sent: it would be worked through once more, and make the server seem quick."""
    road = Road([])
    left_behind = [spooled(COMPLETED) for _ in range(2_000)]
    for had in left_behind[:1_000]:
        road.server.known[had.task_run_id] = Recorded("Completed", had.at)
    with road.lock:
        road.sender.send_also(road.server, left_behind)  # type: ignore[arg-type]
    assert sum(told.origin.known for told in left_behind) == 1_000
    road.go(10, a_second=60)
    road.events.append(event(COMPLETED))
    road.go(4, a_second=60)
    assert road.sender.recorded == 1
    assert road.server.most_queued <= FIRST_WINDOW // 3 + 1
    assert not road.sender.has_own
    assert not road.sender.is_idle
    road.go(60, a_second=60)
    assert road.sender.is_idle


def test_in_a_hurry_nothing_of_the_spool_is_sent() -> None:
    road = Road([])
    road.sender.left_behind.extend(spooled(COMPLETED) for _ in range(10))
    road.sender.hurry()
    road.go(5, a_second=60)
    assert (road.server.known, len(road.sender.unrecorded())) == ({}, 10)


def test_trying_to_reach_a_server_that_is_away_is_no_progress_of_it() -> None:
    road = Road([event(COMPLETED)])
    began = road.sender.progress_at
    road.server.is_away = True
    road.go(60, a_second=100)
    assert road.sender.progress_at == began
    road.server.is_away = False
    road.go(5, a_second=100)
    assert (road.sender.recorded, road.sender.progress_at > began) == (1, True)


def test_one_event_that_the_server_refuses_keeps_none_from_it() -> None:
    bad = event(FAILED)
    road = Road([*(event(COMPLETED) for _ in range(50)), bad, *(event(COMPLETED) for _ in range(50))])
    road.server.refuses = "Failed"
    road.go(20, a_second=500)
    assert (road.sender.recorded, road.sender.given_up) == (100, [bad])


@pytest.mark.parametrize("before", [0, 50, 99])
def test_one_event_over_which_the_server_breaks_down_keeps_none_from_it(before: int) -> None:
    bad = event(FAILED)
    road = Road([*(event(COMPLETED) for _ in range(before)), bad, *(event(COMPLETED) for _ in range(99 - before))])
    road.server.breaks_over = "Failed"
    road.go(20, a_second=500)
    assert (road.sender.recorded, road.sender.given_up) == (99, [bad])
    assert road.sender.is_idle


def test_a_server_that_breaks_down_over_everything_is_in_trouble_itself() -> None:
    """Nothing is given up for that, however long it takes."""
    road = Road([event(COMPLETED) for _ in range(100)])
    road.go(2, a_second=500)
    road.events.extend(event(FAILED) for _ in range(100))
    road.server.breaks_over = ""
    road.go(60, a_second=500)
    assert (road.sender.recorded, road.sender.given_up) == (100, [])
    road.server.breaks_over = None
    road.go(20, a_second=500)
    assert (road.sender.recorded, road.sender.given_up) == (200, [])


def test_a_server_that_breaks_down_and_then_is_away_loses_nothing() -> None:
    """Even while it is asked whether it is the event's fault."""

    class Dying(FakeServer):
        def send(self, bodies: Sequence[bytes]) -> None:
            try:
                super().send(bodies)
            except FaultError:
                self.is_away = True
                raise

    road = Road([event(COMPLETED)])
    road.server = Dying()
    road.go(5, a_second=100)
    road.events.append(event(FAILED))
    road.server.breaks_over = "Failed"
    road.go(5, a_second=100)
    assert [lost.name for lost in road.sender.unrecorded()] == ["Failed"]
    road.server.is_away, road.server.breaks_over = False, None
    road.go(5, a_second=100)
    assert road.sender.recorded == 2


def test_text_that_no_server_can_hold_is_replaced() -> None:
    """Half a surrogate pair, as in the name of a file that is not encoded in UTF-8, and the character 0."""
    told = state_event(
        Facts(str(uuid4()), quoted("caf\udce9"), dynamic_key=quoted("a\0b")),
        Change(FAILED, 1_000_000.0, message="no such file: caf\udce9.csv"),
        FlowRunFacts(),
    )
    text = told.body.decode()
    assert '"no such file: caf?.csv"' in text
    assert "\\udce9" not in text
    assert "\\u0000" not in text


def test_a_state_that_is_lost_each_time_is_given_up_in_the_end() -> None:
    road = Road([event(COMPLETED)])
    for _ in range(4_000):
        road.go(0.5)
        road.server.lose()
    assert len(road.sender.given_up) == 1
    assert road.sender.is_idle


def test_the_body_of_an_event_says_all_of_it_again() -> None:
    told = event(FAILED)
    again = StateEvent.parse(told.body)
    assert (again.task_run_id, again.name, again.at, again.is_final) == (told.task_run_id, "Failed", told.at, True)
    assert told.again(told.at + 1).at == told.at + 1
