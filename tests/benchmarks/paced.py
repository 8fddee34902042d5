"""Measures what each number that paces the mirror does: simulated servers and a clock that is moved."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import httpx
import pytest

from executor_adapter import Job, JobStatus
from executor_adapter.prefect.mirror import sender, timeline
from executor_adapter.prefect.mirror.events import FlowRunFacts, StateEvent
from executor_adapter.prefect.mirror.server import Recorded
from executor_adapter.testing import FakeClock
from tests.prefect.fake_server import FakeServer

STEP = 0.02
"""Seconds by which the clock is moved."""


class PacedServer(FakeServer):
    """Records `per_second` events a second in writes of `write`; each request takes `busy` seconds of that.

    Its queue, and that of its list of events, take `room` events and drop the others. With `swing`, a figure of
    seconds, its speed falls to an eighth every other time. `listed` events a second enter its list, all if it is 0.
    With `overtakes` each fiftieth event is recorded a second later than its neighbours.
    """

    def __init__(
        self,
        clock: FakeClock,
        *,
        per_second: float = 400,
        busy: float = 0.01,
        write: int = 20,
        swing: float = 0,
        listed: float = 0,
        overtakes: bool = False,
        lost_at: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.clock, self.per_second, self.busy, self.write, self.swing = clock, per_second, busy, write, swing
        self.listed, self.room, self.dropped, self.questions = listed, 10_000, 0, 0
        self.credit = self.list_credit = 0.0
        self.lost_at = list(lost_at)
        """When it loses what is in its queue, as one does that is killed."""
        self.overtakes, self.recorders, self.late = overtakes, 0, deque[tuple[float, dict[str, Any]]]()
        if listed:
            self.unlisted = deque()

    def send(self, bodies: Sequence[bytes]) -> None:
        free = self.room - len(self.queue)
        self.credit -= self.busy * self.per_second
        super().send(bodies)
        for _ in range(len(bodies) - free):
            self.queue.pop()
            self.dropped += 1
        while self.unlisted is not None and len(self.unlisted) > self.room:
            self.unlisted.pop()
            self.dropped += 1

    def recorded(self, task_run_ids: Sequence[str]) -> dict[str, Recorded]:
        self.questions += 1
        self.credit -= 0.002 * self.per_second + len(task_run_ids) * 0.0001 * self.per_second
        return super().recorded(task_run_ids)

    def _record(self, event: dict[str, Any]) -> None:
        self.recorders += 1
        if self.overtakes and self.recorders % 50 == 0:
            self.late.append((self.clock() + 1.0, event))
        else:
            super()._record(event)

    def pass_time(self, seconds: float) -> None:
        """Record and list what it manages in `seconds`."""
        if self.lost_at and self.clock() >= self.lost_at[0]:
            self.lost_at.pop(0)
            self.lose()
        while self.late and self.late[0][0] <= self.clock():
            super()._record(self.late.popleft()[1])
        slow = self.swing and int(self.clock() / self.swing) % 2
        earned = seconds * self.per_second / (8 if slow else 1)
        self.credit = min(self.credit + earned, max(self.per_second, self.write))
        while self.queue and self.credit >= min(self.write, len(self.queue)):
            written = min(self.write, len(self.queue))
            self.record(written)
            self.credit -= written
        self.list_credit += seconds * self.listed
        self.list_some(int(self.list_credit))
        self.list_credit %= 1


@dataclass(frozen=True)
class Outcome:
    """What one run of jobs came to: seconds to the last record, seconds from taken to known as recorded, and counts."""

    seconds: float
    waited: float
    sent_again: int
    dropped: int
    requests: int
    questions: int
    states: int

    @property
    def shown(self) -> str:
        again = f", {self.sent_again:,} sent again" if self.sent_again else ""
        dropped = f", {self.dropped:,} dropped" if self.dropped else ""
        asked = f"{self.requests:,} requests, {self.questions:,} questions, {self.states:,} states"
        return f"{self.seconds:,.1f} s, a state waits {self.waited:.1f} s, {asked}{again}{dropped}"


@contextlib.contextmanager
def changed(module: ModuleType, **values: float) -> Iterator[None]:
    """Give numbers of a module other values."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


def measure(
    jobs: int,
    *,
    lasts: float = 0.0,
    starts: float = math.inf,
    is_hurried: bool = False,
    limit: float = 2_000,
    **server_is: Any,
) -> Outcome:
    """Run `jobs` that last `lasts` seconds and start at a rate of `starts` a second, until their ends are recorded.

    `limit` is for how many seconds at most; `server_is` is for the server.
    """
    clock = FakeClock()
    server = PacedServer(clock, **server_is)
    unsent, lock = timeline.UnsentChanges("auto"), threading.Lock()
    unrecorded = waited = 0

    def source(count: int) -> list[StateEvent]:
        nonlocal unrecorded
        events = unsent.next_events(count, FlowRunFacts())
        unrecorded += sum(event.is_final for event in events)
        return events

    mirror = sender.EventSender(source, lock, clock=clock, wall=lambda: 2e9)
    if is_hurried:
        unsent.is_hurried = True
        mirror.hurry()
    due: deque[tuple[float, timeline.JobHistory, JobStatus]] = deque()
    ends: list[tuple[float, timeline.JobHistory, JobStatus]] = []
    for number in range(jobs):
        job = timeline.JobHistory(Job(function=dict), f"{number:032x}")
        at = number / starts
        due += [(at, job, JobStatus.PENDING), (at, job, JobStatus.RUNNING)]
        ends.append((at + lasts, job, JobStatus.COMPLETED))
    due = deque(sorted([*due, *ends], key=lambda each: each[0]))
    while mirror.recorded < jobs and clock() < limit:
        while due and due[0][0] <= clock():
            at, job, status = due.popleft()
            unsent.append(job, timeline.Step(status, 1e6 + at, int(status is not JobStatus.PENDING), None, None))
        with lock, contextlib.suppress(httpx.HTTPError):
            mirror.run_once(server)  # type: ignore[arg-type]
        server.pass_time(STEP)
        clock.advance(STEP)
        waited += unrecorded - mirror.recorded
    states = sum(len(names) for names in server.states.values())
    waits, requests = waited * STEP / jobs, len(server.requests)
    return Outcome(clock(), waits, mirror.resent, server.dropped, requests, server.questions, states)
