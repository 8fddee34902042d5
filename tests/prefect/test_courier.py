"""The courier: never too much on its way, nothing lost, and the server's opinion corrected where it is wrong."""

from __future__ import annotations

import threading
from collections import deque
from uuid import uuid4

from prefect.client.schemas.objects import StateType

from executor_adapter.prefect.courier import Courier
from executor_adapter.prefect.pacing import (
    FIRST_WINDOW,
    LARGEST_WINDOW,
    LEAST_OFTEN,
    MOST_OFTEN,
    SMALLEST_WINDOW,
    Pace,
)
from executor_adapter.prefect.server_api import Recorded
from executor_adapter.prefect.state_events import Change, FlowRunFacts, StateEvent, TaskRunFacts, state_event
from executor_adapter.prefect.states import StateKind
from executor_adapter.testing import FakeClock
from tests.prefect.recorder import Recorder

PENDING, COMPLETED = StateKind(StateType.PENDING, "Pending"), StateKind(StateType.COMPLETED, "Completed")
FAILED = StateKind(StateType.FAILED, "Failed")


def event(kind: StateKind, at: float = 1_000_000.0, task_run_id: str | None = None) -> StateEvent:
    facts = TaskRunFacts(task_run_id or str(uuid4()), '"name"', '"key"', '"job"', "{}")
    return state_event(facts, Change(kind, at), FlowRunFacts())


class Road:
    """A courier between a list of events and a recorder, on a clock of its own."""

    def __init__(self, events: list[StateEvent]) -> None:
        self.server = Recorder()
        self.clock = FakeClock()
        self.events = deque(events)
        self.lock = threading.Lock()
        self.courier = Courier(self._next, self.lock, clock=self.clock, wall=lambda: 2_000_000.0)

    def _next(self, most: int) -> list[StateEvent]:
        return [self.events.popleft() for _ in range(min(most, len(self.events)))]

    def go(self, seconds: float, *, a_second: int | None = None, step: float = 0.5) -> None:
        """Let time pass; the server records so many events a second, None: none."""
        for _ in range(int(seconds / step)):
            with self.lock:
                self.courier.turn(self.server)  # type: ignore[arg-type]
            if a_second:
                self.server.record(int(a_second * step))
            self.clock.advance(step)


def test_all_arrive_and_are_known_to() -> None:
    road = Road([event(COMPLETED) for _ in range(1_000)])
    road.go(20, a_second=1_000)
    assert road.courier.is_idle
    assert (road.courier.recorded, road.courier.told_again, len(road.server.known)) == (1_000, 0, 1_000)


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
    assert road.courier.recorded == 20_000


def test_in_a_hurry_all_is_sent_at_once() -> None:
    """However slow the server has shown itself to be; but never more than its queues hold."""
    road = Road([event(COMPLETED) for _ in range(1_000)])
    road.go(20, a_second=30)
    assert len(road.server.queue) < FIRST_WINDOW
    road.courier.hurry()
    road.go(0.5)
    assert not road.events
    road.events.extend(event(COMPLETED) for _ in range(2 * LARGEST_WINDOW))
    road.go(10, a_second=30)
    assert FIRST_WINDOW < road.server.most_queued <= LARGEST_WINDOW


def test_what_is_on_its_way_outlasts_the_time_between_two_looks() -> None:
    """So the server always has something to record, however fast it is."""
    pace = Pace()
    for seconds in (0.0, 0.5, 1.0, 2.0, 3.0, 10.0):
        pace.confirmed(1_000.0, 1_000.0 + seconds, was_full=False)
        assert pace.look_seconds == min(LEAST_OFTEN, max(MOST_OFTEN, seconds / 4))


def test_what_a_killed_server_lost_is_told_again() -> None:
    """The state's own time is kept, and no state is there twice."""
    events = [event(PENDING, 1_000_000.0), event(COMPLETED, 1_000_001.0)]
    road = Road(events)
    road.go(0.5)
    road.server.lose()
    road.go(60, a_second=100)
    assert (road.courier.recorded, road.courier.told_again) == (1, 1)
    assert road.server.known[events[1].task_run_id] == Recorded("Completed", 1_000_001.0)
    assert road.server.states == {events[0].task_run_id: ["Pending"], events[1].task_run_id: ["Completed"]}


def test_another_opinion_of_the_server_is_corrected_with_a_newer_time() -> None:
    """The clean-up of a cancelled flow run stamps task runs Cancelled, with a time that an old event cannot beat."""
    final = event(COMPLETED)
    road = Road([final])
    road.server.known[final.task_run_id] = Recorded("Cancelled", 1_500_000.0)
    road.go(30, a_second=100)
    assert road.server.known[final.task_run_id] == Recorded("Completed", 2_000_000.0)
    assert road.courier.recorded == 1


def test_one_event_that_the_server_refuses_keeps_none_from_it() -> None:
    bad = event(FAILED)
    road = Road([*(event(COMPLETED) for _ in range(50)), bad, *(event(COMPLETED) for _ in range(50))])
    road.server.refuses = "Failed"
    road.go(20, a_second=500)
    assert (road.courier.recorded, road.courier.given_up) == (100, [bad])


def test_a_state_that_is_lost_each_time_is_given_up_in_the_end() -> None:
    road = Road([event(COMPLETED)])
    for _ in range(4_000):
        road.go(0.5)
        road.server.lose()
    assert len(road.courier.given_up) == 1
    assert road.courier.is_idle


def test_the_body_of_an_event_says_all_of_it_again() -> None:
    told = event(FAILED)
    again = StateEvent.parse(told.body)
    assert (again.task_run_id, again.name, again.at, again.is_final) == (told.task_run_id, "Failed", told.at, True)
    assert told.again(told.at + 1).at == told.at + 1
