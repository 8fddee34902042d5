"""The event sender: it is paced by the server, loses nothing, and corrects the server's record where it is wrong."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import FrameType
from uuid import uuid4

import httpx
import pytest
from prefect import tags
from prefect.client.schemas.objects import StateDetails, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from executor_adapter import Job
from executor_adapter.prefect.mirror import mirror
from executor_adapter.prefect.mirror.events import Change, FlowRunFacts, StateEvent, flow_run_facts
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.sender import (
    MAX_BATCH_SIZE,
    MAX_CHECK_INTERVAL,
    MAX_UNLISTED_EVENTS,
    MAX_WINDOW,
    MIN_CHECK_INTERVAL,
    MIN_WINDOW,
    RECORDING_STALL_TIMEOUT,
    WINDOW_INCREASE,
    EventBatch,
    EventSender,
    SendWindow,
)
from executor_adapter.prefect.mirror.server import Recorded, RejectedError, ServerApi
from executor_adapter.prefect.mirror.timeline import JobHistory, Step, TaskRunHistory, UnsentChanges, engine_change
from executor_adapter.testing import FakeClock
from tests.prefect.fake_server import FakeServer
from tests.prefect.sample_events import COMPLETED, FAILED, PENDING, RUNNING, event
from tests.prefect.server_proxy import answering
from tests.servers import free_port


class Harness:
    """An event sender between a list of events and a fake server, with a fake clock."""

    def __init__(self, events: list[StateEvent]) -> None:
        self.server = FakeServer()
        self.clock = FakeClock()
        self.events = deque(events)
        self.lock = threading.Lock()
        self.sender = EventSender(self._next, self.lock, clock=self.clock, wall=lambda: 2_000_000.0)

    def _next(self, limit: int) -> list[StateEvent]:
        return [self.events.popleft() for _ in range(min(limit, len(self.events)))]

    def run(self, seconds: float, *, per_second: int | None = None, step: float = 0.5) -> None:
        """Let time pass, while the server records `per_second` events a second, or none."""
        for _ in range(int(seconds / step)):
            with self.lock, contextlib.suppress(httpx.HTTPError):
                self.sender.run_once(self.server)  # type: ignore[arg-type]
            if per_second:
                self.server.record(int(per_second * step))
            self.clock.advance(step)

    def inherit(self, path: Path, events: list[StateEvent]) -> None:
        """Write events to an outbox as another mirror, and leave them to this one."""
        file = OutboxFile("server", path)
        file.write(events, is_held=False)
        file.release()
        self.sender.outbox.open(OutboxFile("server", path))

    def count_in_file(self) -> int:
        """Return how many events the outbox's file still has."""
        self.sender.outbox.delete_ended()
        return self.sender.outbox.file.count()


def test_all_events_are_sent_and_known_to_be_recorded() -> None:
    """Each final state is counted once as recorded, and no event is sent again."""
    harness = Harness([event(COMPLETED) for _ in range(1_000)])
    harness.run(20, per_second=1_000)
    assert harness.sender.is_idle
    totals = harness.sender
    assert (totals.recorded, totals.resent, len(harness.server.known)) == (1_000, 0, 1_000)


def test_few_events_are_in_flight_to_a_slow_server() -> None:
    """The window shrinks until events are recorded within seconds, or to its minimum."""
    harness = Harness([event(COMPLETED) for _ in range(14_000)])
    harness.run(3, per_second=1_500)
    assert harness.server.most_queued > 2 * MIN_WINDOW
    harness.run(120, per_second=60)
    harness.server.most_queued = 0
    harness.run(20, per_second=60)
    assert MIN_WINDOW / 2 < harness.server.most_queued <= MIN_WINDOW + WINDOW_INCREASE


def test_more_events_are_in_flight_to_a_fast_server() -> None:
    """The window grows up to its maximum, not to all events."""
    harness = Harness([event(COMPLETED) for _ in range(20_000)])
    harness.run(10, per_second=6_000)
    assert MIN_WINDOW < harness.server.most_queued <= MAX_WINDOW
    harness.run(10, per_second=6_000)
    assert harness.sender.recorded == 20_000


@pytest.mark.parametrize("listed", [pytest.param(200, marks=pytest.mark.nightly), 25, 0])
def test_an_event_list_slower_than_the_recorder_is_not_overrun(listed: int) -> None:
    """Sending waits for the list's own queue, but not forever for a list that accepts no events."""
    harness = Harness([event(COMPLETED) for _ in range(20_000)])
    harness.server.unlisted = deque()
    for _ in range(600):
        harness.run(0.5, per_second=6_000)
        harness.server.list_some(listed)
    assert harness.sender.recorded == 20_000
    if listed:
        most = harness.server.most_unlisted
        assert MAX_UNLISTED_EVENTS - MAX_BATCH_SIZE < most <= MAX_UNLISTED_EVENTS + MAX_BATCH_SIZE


def test_an_event_list_that_does_not_answer_holds_up_no_states() -> None:
    """A server that searches its list for too long, and records states meanwhile, gets all of them."""

    class Searching(FakeServer):
        def is_listed(self, event: StateEvent) -> bool:
            raise httpx.ReadTimeout("it searches")

    harness = Harness([event(COMPLETED) for _ in range(20_000)])
    harness.server = Searching()
    harness.run(60, per_second=6_000)
    assert harness.sender.recorded == 20_000


def test_in_a_hurry_events_are_sent_at_once() -> None:
    """In a hurry a slow server does not hold up events, but never gets more than its queues hold."""
    harness = Harness([event(COMPLETED) for _ in range(1_000)])
    harness.run(20, per_second=30)
    assert len(harness.server.queue) <= MIN_WINDOW
    harness.sender.hurry()
    harness.run(0.5)
    assert not harness.events
    harness.events.extend(event(COMPLETED) for _ in range(2 * MAX_WINDOW))
    harness.run(10, per_second=30)
    assert MIN_WINDOW < harness.server.most_queued <= MAX_WINDOW


def recorded(window: SendWindow, events: int, seconds: float, now: float = 1_000.0, *, is_dry: bool = False) -> None:
    """Tell the window that a full request was recorded within so many seconds."""
    batch = EventBatch([event(COMPLETED) for _ in range(events)], now - seconds, filled_window=True)
    window.on_recorded([batch], now - seconds, now, is_dry=is_dry)


def test_the_window_grows_by_steps_once_it_has_been_halved() -> None:
    """It grows with all that is recorded until the server is slow once; then it is halved, and grows by small steps."""
    window = SendWindow()
    recorded(window, 2 * MIN_WINDOW, 1.0)
    grown = window.size
    recorded(window, 100, 5.0, now=1_010.0)
    halved = window.size
    recorded(window, 100, 6.0, now=1_011.0)  # Sent before it was halved.
    recorded(window, 100, 1.0, now=1_020.0)
    assert (grown, halved) == (3 * MIN_WINDOW, 3 * MIN_WINDOW // 2)
    assert halved < window.size < halved + 100


def test_a_server_that_has_recorded_all_gets_more() -> None:
    """A server that writes much at once may take long, and yet has no queue: the window grows until it has one."""
    window = SendWindow()
    recorded(window, 100, 5.0, is_dry=True)
    assert window.size == MIN_WINDOW + 100


def test_few_events_are_checked_more_often() -> None:
    """Events are checked the more often, the sooner all should be recorded; a stalled server ever less."""
    window = SendWindow()
    assert window.check_interval(3, stalled=0.0) == MIN_CHECK_INTERVAL
    recorded(window, 1_500, 3.0)
    intervals = [window.check_interval(left, stalled=0.0) for left in (2_000, 500, 100, 3)]
    assert intervals == [MAX_CHECK_INTERVAL, pytest.approx(1 / 3), pytest.approx(1 / 15), MIN_CHECK_INTERVAL]
    for left in (1, 100):
        assert window.check_interval(left, stalled=1.5) == 0.5
        assert window.check_interval(left, stalled=30.0) == MAX_CHECK_INTERVAL


def test_events_are_sent_in_few_requests() -> None:
    """Events are sent in few requests, since each request disturbs a busy server."""
    harness = Harness([event(COMPLETED) for _ in range(5_000)])
    harness.run(30, per_second=100)
    assert min(harness.server.requests) >= MIN_WINDOW // 3


def test_events_that_a_killed_server_lost_are_sent_again() -> None:
    """Events that a killed server lost are sent again with their times, and no state is recorded twice."""
    events = [event(PENDING, 1_000_000.0), event(COMPLETED, 1_000_001.0)]
    harness = Harness(events)
    harness.run(0.5)
    harness.server.lose()
    harness.run(60, per_second=100)
    assert (harness.sender.recorded, harness.sender.resent) == (1, 1)
    assert harness.server.known[events[1].task_run_id] == Recorded("Completed", 1_000_001.0)
    assert harness.server.states == {events[0].task_run_id: ["Pending"], events[1].task_run_id: ["Completed"]}


@pytest.mark.parametrize("minutes", [1, 60])
def test_a_server_that_records_nothing_for_long_gets_no_more_events(minutes: int) -> None:
    """While it records nothing it is asked for one event alone, and gets that again; then each is recorded once."""
    events = [event(COMPLETED, flow_run_id=("one", "another")[n % 2]) for n in range(100)]
    harness = Harness(events)
    harness.run(60 * minutes, step=1.0)
    assert harness.server.looked_up == [2, *[1] * (len(harness.server.looked_up) - 1)]
    assert harness.server.requests[0] == 100
    assert set(harness.server.requests[1:]) == {1}
    assert harness.sender.progress_at < 1.0
    harness.run(60, per_second=100)
    assert (harness.sender.recorded, harness.sender.given_up, harness.sender.is_idle) == (100, [], True)
    assert set(map(len, harness.server.states.values())) == {1}


def test_what_a_server_has_lost_is_found_behind_what_it_has_not() -> None:
    """Of the events of a server that lost the first ones in silence, those are sent again, and no others."""
    states = [event(PENDING), *(event(COMPLETED) for _ in range(99))]
    harness = Harness(states)
    harness.run(0.5)
    for _ in range(40):
        harness.server.queue.popleft()
    harness.run(30)
    harness.run(60, per_second=100)
    asked = len(harness.server.requests) - 2
    assert (harness.sender.recorded, harness.sender.resent, harness.sender.is_idle) == (99, 39 + asked, True)
    assert set(map(len, harness.server.states.values())) == {1}
    assert len(harness.server.states) == 100


def test_a_newer_state_set_by_the_server_is_corrected_with_a_newer_time() -> None:
    """A Cancelled state that the server's clean-up set is corrected by an event with a newer time."""
    final = event(COMPLETED)
    harness = Harness([final])
    harness.server.known[final.task_run_id] = Recorded("Cancelled", 1_500_000.0)
    harness.run(30, per_second=100)
    assert harness.server.known[final.task_run_id] == Recorded("Completed", 2_000_000.0)
    assert harness.sender.recorded == 1


@pytest.mark.parametrize(
    "newer",
    [
        Recorded("Completed", 1_500_000.0),
        Recorded("Running", 1_500_000.0),
        Recorded("Cancelled", 1_500_000.0, "CANCELLED: by its user"),
    ],
)
def test_an_inherited_event_does_not_replace_a_newer_state(tmp_path: Path, newer: Recorded) -> None:
    """An inherited event does not replace the state of a newer run of the same job id."""
    old, harness = event(FAILED), Harness([])
    harness.server.known[old.task_run_id] = newer
    harness.inherit(tmp_path / "outbox.db", [old])
    harness.run(30, per_second=100)
    assert harness.server.known[old.task_run_id] == newer
    assert (harness.sender.is_idle, harness.sender.resent, harness.count_in_file()) == (True, 0, 0)


def test_an_inherited_event_replaces_the_state_of_a_clean_up(tmp_path: Path) -> None:
    """An inherited event replaces the Cancelled state that the server's clean-up set."""
    old, harness = event(FAILED), Harness([])
    harness.server.known[old.task_run_id] = Recorded("Cancelled", 1_500_000.0, "The parent flow run was cancelled.")
    harness.inherit(tmp_path / "outbox.db", [old])
    harness.run(30, per_second=100)
    assert harness.server.known[old.task_run_id] == Recorded("Failed", 2_000_000.0)
    assert harness.count_in_file() == 0


def test_new_events_do_not_wait_for_inherited_ones(tmp_path: Path) -> None:
    """A new event is recorded behind at most one request of inherited ones, which are all recorded too."""
    harness = Harness([])
    harness.inherit(tmp_path / "outbox.db", [event(COMPLETED) for _ in range(1_000)])
    harness.run(10, per_second=60)
    harness.events.append(event(COMPLETED))
    harness.run(4, per_second=60)
    assert harness.sender.recorded == 1
    assert harness.server.most_queued <= MIN_WINDOW // 3 + 1
    assert not harness.sender.has_own_events
    assert 0 < harness.count_in_file() < 1_000
    harness.run(60, per_second=60)
    assert (harness.sender.is_idle, harness.count_in_file()) == (True, 0)


def test_in_a_hurry_inherited_events_are_not_sent(tmp_path: Path) -> None:
    """In a hurry, inherited events stay in the file for the next process."""
    harness = Harness([])
    harness.inherit(tmp_path / "outbox.db", [event(COMPLETED) for _ in range(10)])
    harness.sender.hurry()
    harness.run(5, per_second=60)
    assert (harness.server.known, harness.count_in_file()) == ({}, 10)


def test_attempts_to_reach_a_server_are_not_progress() -> None:
    """Attempts to reach a server do not count as progress; only records do."""
    harness = Harness([event(COMPLETED)])
    started_at = harness.sender.progress_at
    harness.server.is_unreachable = True
    harness.run(60, per_second=100)
    assert harness.sender.progress_at == started_at
    harness.server.is_unreachable = False
    harness.run(5, per_second=100)
    assert (harness.sender.recorded, harness.sender.progress_at > started_at) == (1, True)


@pytest.mark.parametrize("before", [0, 50, 99])
def test_an_event_that_the_server_rejects_does_not_hold_up_others(before: int) -> None:
    """An event that the server rejects is given up, at any place in its request, and the others are recorded."""
    bad = event(FAILED)
    after = 99 - before
    harness = Harness([*(event(COMPLETED) for _ in range(before)), bad, *(event(COMPLETED) for _ in range(after))])
    harness.server.rejects = "Failed"
    harness.run(20, per_second=500)
    assert (harness.sender.recorded, harness.sender.given_up) == (99, [bad.job_id])
    assert harness.sender.is_idle


def test_states_of_a_deleted_flow_run_are_not_sent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is sent again, one warning names the flow run, and of many the jobs are only counted."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.sender.MAX_IN_MEMORY", 2_000)
    harness = Harness([event(COMPLETED, flow_run_id="gone") for _ in range(20)])
    harness.run(0.5)
    harness.server.deleted.add("gone")
    harness.server.lose()
    harness.events.append(event(COMPLETED, flow_run_id="gone"))
    harness.run(0.5)
    harness.events.extend(event(COMPLETED, flow_run_id="gone") for _ in range(2_000))
    harness.run(20)
    assert (harness.server.requests, len(harness.sender.given_up), harness.sender.outbox.lost) == ([20], 2_000, 21)
    assert (harness.sender.is_idle, harness.sender.unrecorded()) == (True, [])
    (said,) = [record.getMessage() for record in caplog.records if "gone" in record.getMessage()]
    assert said == "flow run gone was deleted, or is not on this server: no states of its task runs are sent"


def test_inherited_states_of_a_deleted_flow_run_are_dropped(tmp_path: Path) -> None:
    """The file does not keep them, and the states of other flow runs that were left with them are recorded."""
    harness = Harness([])
    harness.server.deleted.add("gone")
    inherited = [event(COMPLETED, flow_run_id=("gone", "there", "")[n % 3]) for n in range(300)]
    harness.inherit(tmp_path / "outbox.db", inherited)
    harness.run(30, per_second=100)
    assert harness.count_in_file() == 0
    assert harness.server.known.keys() == {each.task_run_id for each in inherited if each.flow_run_id != "gone"}
    assert harness.sender.is_idle


def test_an_inherited_event_with_a_newer_time_is_kept_as_it_is_sent_again(tmp_path: Path) -> None:
    """A process that is killed after it has sent a state with a newer time leaves it, so none is recorded twice."""
    old, harness = event(COMPLETED), Harness([])
    harness.server.known[old.task_run_id] = Recorded("Cancelled", 1_500_000.0, "The parent flow run was cancelled.")
    harness.inherit(tmp_path / "outbox.db", [old])
    harness.run(0.5)
    harness.server.record()
    harness.run(30)
    sent = harness.server.queue[0]
    harness.sender.outbox.file.release()  # As the end of its process does.
    (left,) = OutboxFile("server", tmp_path / "outbox.db").take_over(10)
    assert left.id == sent["id"] != old.id


def test_a_look_that_ends_after_the_outbox_was_closed_changes_nothing_in_it(tmp_path: Path) -> None:
    """What a closed mirror has left is the next one's, though its thread finds out meanwhile that it was lost."""
    old, harness = event(COMPLETED), Harness([])
    harness.inherit(tmp_path / "outbox.db", [old])
    harness.run(0.5)
    harness.server.lose()
    harness.sender.outbox.close(harness.sender.unrecorded())
    harness.run(30)
    assert harness.sender.unrecorded() or harness.server.queue, "it was not found to be lost"
    (left,) = OutboxFile("server", tmp_path / "outbox.db").take_over(10)
    assert left.id == old.id


@pytest.mark.parametrize(
    ("status", "error"),
    [(s, RejectedError) for s in (400, 403, 409, 413, 422, 500)]
    + [(s, httpx.HTTPStatusError) for s in (401, 404, 408, 429, 502, 503)],
)
def test_a_status_tells_whether_waiting_helps(status: int, error: type[Exception]) -> None:
    """What a server refuses for good is a rejection; wrong credentials, a wrong address and load are not."""
    port = free_port()
    with (
        answering(status, port),
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
        ServerApi.connected() as api,
        pytest.raises(error, match=str(status)),
    ):
        api.send([event(COMPLETED).body])


@pytest.mark.parametrize(("status", "answer"), [(403, True), (404, True), (500, None)])
def test_a_server_without_a_list_of_events_is_not_waited_for(status: int, answer: bool | None) -> None:
    """Where the list cannot be asked for, events count as listed; a server in trouble is asked again later."""
    port = free_port()
    with (
        answering(status, port),
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
        ServerApi.connected() as api,
        pytest.raises(httpx.HTTPStatusError) if answer is None else contextlib.nullcontext(),
    ):
        assert api.is_listed(event(COMPLETED)) is answer


def test_no_event_is_given_up_while_the_server_rejects_everything() -> None:
    """While the server rejects every event, none is given up, from the first on and however long that takes."""
    harness = Harness([event(COMPLETED) for _ in range(100)])
    harness.server.rejects = ""
    harness.run(60, per_second=500)
    assert len(harness.sender.unrecorded()) + len(harness.events) == 100
    harness.server.rejects = None
    harness.run(2, per_second=500)
    harness.events.extend(event(FAILED) for _ in range(100))
    harness.server.rejects = ""
    harness.run(60, per_second=500)
    assert (harness.sender.recorded, harness.sender.given_up) == (100, [])
    harness.server.rejects = None
    harness.run(20, per_second=500)
    assert (harness.sender.recorded, harness.sender.given_up) == (200, [])


def test_no_event_is_given_up_while_every_second_request_is_rejected() -> None:
    """Behind a load balancer that alternates between a server that works and one that does not, no event is lost."""

    class Alternating(FakeServer):
        def send(self, bodies: Sequence[bytes]) -> None:
            self.rejects = "" if self.rejects is None else None
            super().send(bodies)

    harness = Harness([event(COMPLETED) for _ in range(200)])
    harness.server = Alternating()
    harness.run(60, per_second=500)
    assert (harness.sender.recorded, harness.sender.given_up) == (200, [])


def test_a_server_that_fails_and_then_cannot_be_reached_loses_no_event() -> None:
    """A server that becomes unreachable while it is asked about a failing event loses no event."""

    class FailingThenAway(FakeServer):
        def send(self, bodies: Sequence[bytes]) -> None:
            try:
                super().send(bodies)
            except RejectedError:
                self.is_unreachable = True
                raise

    harness = Harness([event(COMPLETED)])
    harness.server = FailingThenAway()
    harness.run(5, per_second=100)
    harness.events.append(event(FAILED))
    harness.server.rejects = "Failed"
    harness.run(5, per_second=100)
    assert [lost.name for lost in harness.sender.unrecorded()] == ["Failed"]
    harness.server.is_unreachable, harness.server.rejects = False, None
    harness.run(5, per_second=100)
    assert harness.sender.recorded == 2


def test_characters_that_a_server_cannot_store_are_replaced() -> None:
    """Null characters and half surrogate pairs, which a server cannot store, are replaced."""
    text = event(FAILED, error="a\0b: no such file: caf\udce9.csv").body.decode()
    assert "no such file: caf?.csv" in text
    assert "\\udce9" not in text
    assert "\\u0000" not in text


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("\\\0", "\\\N{REPLACEMENT CHARACTER}"),
        ("caf\udce9", "caf\N{REPLACEMENT CHARACTER}"),
        ("\N{GRINNING FACE} \ud83d", "\N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"),
        (r"C:\u0000 \udce9", None),
    ],
)
def test_what_a_server_cannot_store_is_replaced_in_tags_and_details(text: str, stored: str | None) -> None:
    """No part of an event has such a character, and a backslash before what looks like one is left alone."""
    stored = stored or text
    task_run = TaskRun(task_key=text, dynamic_key=text, name=text, tags=[text], cache_key=text)  # type: ignore[arg-type]
    state = Running(message=text, state_details=StateDetails(cache_key=text))
    history: TaskRunHistory[Change] = TaskRunHistory(str(task_run.id), "job", [text])
    history.add(engine_change(task_run, state, None))
    sent = json.loads(history.next_event(FlowRunFacts()).body)
    shown = sent["payload"]["task_run"]
    assert (shown["tags"], shown["task_key"], shown["cache_key"]) == ([stored], stored, stored)
    assert sent["payload"]["validated_state"]["state_details"]["cache_key"] == stored
    assert sent["related"][0]["prefect.resource.id"] == f"prefect.tag.{stored}"


def test_what_a_server_cannot_store_is_replaced_in_the_tags_of_a_flow_run() -> None:
    """The tags around the flow are those of each job."""
    with tags("a\0b"):
        flow = flow_run_facts()
    history = JobHistory(Job(function=dict), str(uuid4()))
    history.add(Step(COMPLETED, 1_000_000.0, 1, None, None))
    sent = json.loads(history.next_event(flow).body)
    assert sent["payload"]["task_run"]["tags"] == ["a\N{REPLACEMENT CHARACTER}b"]


def test_a_state_that_the_server_loses_each_time_is_given_up() -> None:
    """A state that the server loses each time, while it records others, is sent a limited number of times."""
    bad, harness = event(FAILED), Harness([])
    harness.server.poisons, harness.server.transaction = {bad.id}, 1
    harness.events.append(bad)
    for _ in range(100):
        harness.events.append(event(COMPLETED))
        harness.run(4.5, per_second=100)
    assert (harness.sender.given_up, harness.sender.recorded) == ([bad.job_id], 100)
    assert harness.sender.is_idle


def events_of(jobs: int) -> list[StateEvent]:
    """Return three events of each of so many jobs."""
    runs = [str(uuid4()) for _ in range(jobs)]
    states = ((PENDING, 1_000_000.0), (RUNNING, 1_000_001.0), (COMPLETED, 1_000_002.0))
    return [event(status, at, run) for run in runs for status, at in states]


def assert_recorded(harness: Harness, events: list[StateEvent], poisons: list[StateEvent]) -> None:
    """Assert that all final states but the poisons are recorded, each state once, and none of them is given up."""
    ids = {each.id for each in poisons}
    finals = {each.task_run_id: each.name for each in events if each.is_final and each.id not in ids}
    assert {run: known.name for run, known in harness.server.known.items() if run in finals} == finals
    assert harness.sender.recorded == len(finals)
    assert all(len(names) == len(set(names)) for names in harness.server.states.values())
    assert set(harness.sender.given_up) <= {each.job_id for each in poisons}


def assert_settled(harness: Harness, events: list[StateEvent], poisons: list[StateEvent]) -> None:
    """Assert that all final states but the poisons are recorded, and that the poisons, and they alone, are given up."""
    assert_recorded(harness, events, poisons)
    assert sorted(harness.sender.given_up) == sorted(each.job_id for each in poisons)
    assert harness.sender.is_idle


@pytest.mark.parametrize("transaction", [500, 50])
@pytest.mark.parametrize("place", [0, 450, 899])
def test_a_state_that_a_server_cannot_record_takes_no_others_along(transaction: int, place: int) -> None:
    """Where a server loses all that it records together with one state, that one alone is given up."""
    events = events_of(300)
    bad = next(each for each in events[place:] if each.is_final)
    harness = Harness(events)
    harness.server.transaction, harness.server.poisons = transaction, {bad.id}
    for _ in range(10):  # The last one is given up once the server has recorded others since.
        harness.run(60, per_second=1_000)
        events.append(event(COMPLETED))
        harness.events.append(events[-1])
    harness.run(60, per_second=1_000)
    assert_settled(harness, events, [bad])


def test_an_intermediate_state_that_a_server_cannot_record_is_given_up() -> None:
    """It is not sent for ever, and costs no final state."""
    events = events_of(300)
    bad = next(each for each in events[450:] if each.name == "Running")
    harness = Harness([each for each in events if each.task_run_id != bad.task_run_id] + [bad])
    harness.server.poisons = {bad.id}
    harness.run(600, per_second=1_000)
    assert (harness.sender.recorded, harness.sender.given_up, harness.sender.is_idle) == (299, [], True)


@pytest.mark.parametrize("others", [1, 40])
def test_a_state_that_a_server_cannot_record_holds_up_none_that_come_later(others: int) -> None:
    """Alone on the server, it is given up once the server has shown with others that it records."""
    bad = event(FAILED)
    harness = Harness([bad])
    harness.server.poisons = {bad.id}
    harness.run(30, per_second=1_000)
    later = [event(COMPLETED) for _ in range(20 * others)]
    for start in range(0, len(later), others):
        harness.events.extend(later[start : start + others])
        harness.run(45, per_second=1_000)
        assert harness.sender.recorded > start - others, "others wait behind it"
    harness.run(30, per_second=1_000)
    assert_settled(harness, [bad, *later], [bad])


@pytest.mark.parametrize("places", [(0, 1, 2), (10, 300, 599), (597, 598, 599)])
@pytest.mark.parametrize("transaction", [500, 50])
def test_several_states_that_a_server_cannot_record_take_no_others_along(
    transaction: int, places: tuple[int, ...]
) -> None:
    """Each of them is given up, wherever they are, and no other one."""
    events = [event(COMPLETED) for _ in range(600)]
    bad = [events[place] for place in places]
    harness = Harness(events[:])
    harness.server.transaction, harness.server.poisons = transaction, {each.id for each in bad}
    for _ in range(60):
        harness.run(30, per_second=1_000)
        events.append(event(COMPLETED))
        harness.events.append(events[-1])
    harness.run(60, per_second=1_000)
    assert_settled(harness, events, bad)


def test_a_server_that_loses_all_twice_costs_no_state_and_little_time() -> None:
    """What it has lost twice, as a server that is killed twice has, is sent again in requests of the same size."""

    sent = Counter[str]()

    class Losing(FakeServer):
        """Records what is sent alone, and what is sent for the third time."""

        def send(self, bodies: Sequence[bytes]) -> None:
            super().send(bodies)
            new = [self.queue.pop() for _ in bodies]
            sent.update(each["id"] for each in new)
            self.queue.extend(each for each in reversed(new) if sent[each["id"]] > 2 or len(new) == 1)

    events = [event(COMPLETED) for _ in range(300)]
    harness = Harness(events[:])
    harness.server = Losing()
    harness.run(3 * RECORDING_STALL_TIMEOUT, per_second=1_000, step=0.1)
    assert_recorded(harness, events, [])
    assert harness.sender.is_idle
    assert len(harness.server.requests) <= 3 * 3 + 2  # Three batches, each three times, and two probes.


@pytest.mark.parametrize("size", [1, 7])
def test_a_long_standstill_gives_up_no_suspects(size: int) -> None:
    """States that were lost again and again, or are alone in their requests, outlive hours without a record."""
    harness = Harness([])
    events: list[StateEvent] = []
    for _ in range(3):
        events += [event(COMPLETED) for _ in range(size)]
        harness.events.extend(events[-size:])
        harness.run(15)
        harness.server.lose()
        harness.run(2, per_second=1)
    sent = len(harness.server.requests)
    harness.run(7_200, step=1.0)
    assert len(harness.server.requests) - sent <= 2 * 7_200 / RECORDING_STALL_TIMEOUT
    harness.run(120, per_second=100)
    assert_settled(harness, events, [])


def test_suspects_do_not_keep_a_caller_waiting_who_waits_for_progress() -> None:
    """Sending a state again that is never recorded is no progress: who waits for the server gives up in time."""
    events = [event(COMPLETED), event(COMPLETED)]
    harness = Harness(events)
    harness.server.poisons = {each.id for each in events}
    harness.run(30, per_second=100)
    before = harness.sender.progress_at
    harness.events.append(event(PENDING))
    harness.run(30, per_second=100)
    seen = harness.sender.progress_at
    assert seen > before
    harness.run(600, per_second=100)
    assert harness.sender.progress_at < seen + 120
    assert len(harness.sender.unrecorded()) + len(harness.sender.given_up) == 2


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(8, 200))]
)
def test_no_innocent_state_is_given_up_whatever_is_lost(seed: int) -> None:
    """Poisons, losses, standstills and times without a connection, in any order, cost no other state."""
    chance = Random(seed)
    harness = Harness([])
    harness.server.transaction = chance.choice([1, 20, 50, 500])
    events: list[StateEvent] = []
    bad: list[StateEvent] = []
    losses = 0
    for _ in range(chance.randrange(10, 40)):
        new = events_of(chance.choice([0, 1, 3, 30, 200]))
        poisons = [each for each in new if each.is_final and chance.random() < 0.01]
        harness.server.poisons |= {each.id for each in poisons}
        events, bad = events + new, bad + poisons
        harness.events.extend(new)
        what = chance.choice(["record", "record", "record", "lose", "stand still", "away"])
        if what == "lose" and losses < 3:
            losses += 1
            harness.server.lose()
        harness.server.is_unreachable = what == "away"
        per_second = None if what == "stand still" else chance.choice([30, 200, 2_000])
        harness.run(chance.choice([1, 10, 30, 100]), per_second=per_second)
    harness.server.is_unreachable = False
    for _ in range(40 + 40 * len(bad)):
        if len(harness.sender.given_up) < len(bad) and not harness.events:
            events.append(event(COMPLETED))
            harness.events.append(events[-1])
        harness.run(30, per_second=1_000)
    assert_settled(harness, events, bad)


def test_a_state_enters_few_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the step of a job to its record a state enters few modules of the mirror; a number to lower."""
    unsent, harness, entered = UnsentChanges("auto"), Harness([]), set[str]()
    monkeypatch.setattr(mirror, "UnsentChanges", lambda _: unsent)
    monkeypatch.setattr(mirror.SenderThread, "start", lambda _: None)
    made = mirror.TaskRunMirror(outbox=OutboxFile("server", tmp_path / "outbox.db"))
    history = made.add_job(Job(function=dict))
    source = functools.partial(unsent.next_events, flow=FlowRunFacts())
    harness.sender = EventSender(source, harness.lock, clock=harness.clock)

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/prefect/mirror/" in frame.f_code.co_filename:
            entered.add(Path(frame.f_code.co_filename).stem)

    sys.setprofile(trace)
    try:
        made.enqueue_step(history, Step(COMPLETED, 1_000_000.0, 1, None, None))
        harness.run(5, per_second=10)
    finally:
        sys.setprofile(None)
    assert (harness.sender.recorded, len(entered)) == (1, 6), entered
