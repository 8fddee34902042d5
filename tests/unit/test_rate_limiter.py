"""Tests of the limits of a tool's jobs, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_adapter import Job, JobStatus
from executor_adapter.job.validation import ToolLimit
from executor_adapter.supervision.line import Line
from executor_adapter.supervision.scheduling import ReadyQueue, SlotLimits
from executor_adapter.supervision.tools import RateLimiter
from tests.insides import cancel_queued, make_dispatcher, stopped_loop


class LimitedTools:
    """A rate limiter with a fake clock, fake timers, and a record of the jobs that it started."""

    def __init__(self, **limits: ToolLimit) -> None:
        self.time = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.started: list[tuple[float, Job]] = []
        self.rate_limiter = RateLimiter(
            limits,
            stopped_loop(lambda: self.time, lambda *call: self.timers.append(call)),
            release=self.release,
            running_of=lambda _: (),
        )
        self.queue = ReadyQueue()

    def release(self, line: Line) -> None:
        """Let the jobs of a line start, until the limiter holds it back."""
        self.queue.enter(line)
        self.start_all()

    def start(self, job: Job) -> None:
        """Start the job unless the limiter holds it back."""
        self.queue.push(job, ("", None, job.tool_name))
        self.start_all()

    def start_all(self) -> None:
        while (line := self.queue.first()) is not None:
            job, line.place = line.first, None
            if self.rate_limiter.start(job, line):
                self.queue.pop(line)
                self.started.append((round(self.time, 6), job))

    def advance(self, until: float) -> None:
        """Move the clock and run the timers that become due."""
        while due := [timer for timer in self.timers if timer[0] <= until]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.time = max(self.time, first[0])
            first[1]()
            self.turn()
        self.time = until

    def turn(self) -> None: ...


def job(tool: str | None = "api") -> Job:
    return Job(function=print, tool_name=tool)


def test_a_tool_without_limits_is_never_held_back() -> None:
    """Jobs of a tool without limits, or without a tool, start at once."""
    tools = LimitedTools(api=ToolLimit(max_concurrent=1))
    for _ in range(5):
        tools.start(job("other"))
        tools.start(job(None))
    assert len(tools.started) == 10


def test_at_most_max_concurrent_jobs_run() -> None:
    """At most max_concurrent jobs of a tool run; the next starts when one ends."""
    tools = LimitedTools(api=ToolLimit(max_concurrent=2))
    jobs = [job() for _ in range(4)]
    for each in jobs:
        tools.start(each)
    assert [started for _, started in tools.started] == jobs[:2]
    tools.rate_limiter.attempt_ended(jobs[0])
    assert [started for _, started in tools.started] == jobs[:3]


def test_starts_are_spread_at_the_rate_after_the_burst() -> None:
    """After the burst, jobs start at the rate."""
    tools = LimitedTools(api=ToolLimit(rate=2.0, burst=3))
    for _ in range(7):
        tools.start(job())
    tools.advance(10.0)
    assert [when for when, _ in tools.started] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_the_buffer_leaves_a_share_of_the_rate_unused() -> None:
    """`buffer` lowers the rate by its share."""
    tools = LimitedTools(api=ToolLimit(rate=10.0, buffer=0.5))
    for _ in range(3):
        tools.start(job())
    tools.advance(1.0)
    assert [when for when, _ in tools.started] == [0.0, 0.2, 0.4]


def test_a_pause_holds_all_of_the_tool_s_jobs() -> None:
    """A pause holds back all jobs of the tool, and no others."""
    tools = LimitedTools(api=ToolLimit(max_concurrent=9), other=ToolLimit(max_concurrent=9))
    tools.rate_limiter.pause(job(), 30.0)
    for _ in range(3):
        tools.start(job())
    tools.start(job("other"))
    assert [started.tool_name for _, started in tools.started] == ["other"]
    tools.advance(60.0)
    assert [when for when, started in tools.started if started.tool_name == "api"] == [30.0, 30.0, 30.0]


def test_an_idle_tool_saves_up_no_more_than_its_burst() -> None:
    """An idle tool saves up no more than its burst."""
    tools = LimitedTools(api=ToolLimit(rate=1.0, burst=2))
    tools.advance(1000.0)
    for _ in range(4):
        tools.start(job())
    assert len(tools.started) == 2


class LimitedDispatcher(LimitedTools):
    """A dispatcher with a few slots and a rate limiter; records the jobs that it started, in order."""

    def __init__(self, slots: int, **limits: ToolLimit) -> None:
        super().__init__(**limits)
        self.dispatcher = make_dispatcher(SlotLimits(slots))
        self.dispatcher.rate_limiter = RateLimiter(
            limits,
            stopped_loop(lambda: self.time, lambda *call: self.timers.append(call)),
            release=self.dispatcher.queue.enter,
            running_of=lambda _: (),
        )
        self.submitted: list[Job] = []
        self.running: list[Job] = []

    def submit(self, *jobs: Job) -> None:
        for each in jobs:
            each.live.queued_at = float(len(self.submitted))
            self.submitted.append(each)
            self.dispatcher.push(each)
        self.turn()

    def turn(self) -> None:
        """Run due timers, then start what can start, as the supervisor does."""
        for timer in [timer for timer in self.timers if timer[0] <= self.time]:
            self.timers.remove(timer)
            timer[1]()
        self.dispatcher.run(self.begin, lambda job: False)

    def begin(self, job: Job) -> None:
        """Start a job; fail if a job of its tool with a better claim still waits."""
        assert not [other for other in self.submitted[: self.submitted.index(job)] if self.is_before(other, job)]
        assert not [other for other in self.submitted if self.is_before(other, job) and other.priority > job.priority]
        self.dispatcher.reserve(job)
        self.running.append(job)
        self.started.append((self.time, job))
        job.advance(JobStatus.RUNNING)

    @staticmethod
    def is_before(other: Job, job: Job) -> bool:
        """Return whether a waiting job of the same tool must start before this one."""
        waits = other.status is JobStatus.PENDING
        return waits and other.tool_name == job.tool_name and other.priority >= job.priority

    def end(self, job: Job) -> None:
        self.running.remove(job)
        self.dispatcher.unreserve(job)
        job.advance(JobStatus.COMPLETED)
        self.dispatcher.attempt_ended(job)
        self.turn()

    def advance(self, until: float) -> None:
        super().advance(until)
        self.turn()

    def of(self, tool: str | None) -> list[Job]:
        return [job for _, job in self.started if job.tool_name == tool]


def test_a_tool_without_a_limit_pauses_too() -> None:
    """A pause holds back the jobs of its tool, those that were queued before included, and no others."""
    tools = LimitedDispatcher(1)
    first, queued, other = job(), job(), job("other")
    tools.submit(first, queued, other)
    tools.dispatcher.rate_limiter.pause(first, 30.0)
    tools.end(first)
    tools.end(other)
    tools.advance(29.0)
    assert tools.of("api") == [first]
    tools.advance(31.0)
    assert tools.of("api") == [first, queued]


def test_held_back_jobs_start_in_order() -> None:
    """Jobs that were held back start in the order of their submission."""
    tools = LimitedDispatcher(4, api=ToolLimit(max_concurrent=1))
    jobs = [job() for _ in range(20)]
    tools.submit(*jobs)
    while tools.running:
        tools.end(tools.running[0])
    assert tools.of("api") == jobs


def test_a_rate_keeps_the_order_while_slots_are_taken() -> None:
    """A released job that finds no slot is not overtaken by one that is released later."""
    tools = LimitedDispatcher(1, api=ToolLimit(rate=10.0))
    jobs = [job() for _ in range(10)]
    tools.submit(*jobs, *(job("other") for _ in range(8)))
    while tools.running:
        tools.end(tools.running[0])
        tools.advance(tools.time + 0.3)
    assert tools.of("api") == jobs
    assert len(tools.of("other")) == 8


def test_a_higher_priority_is_released_first() -> None:
    """The held-back job with the highest priority is released first."""
    tools = LimitedDispatcher(4, api=ToolLimit(max_concurrent=1))
    low, high = [job() for _ in range(3)], Job(function=print, tool_name="api", priority=10)
    tools.submit(*low)
    tools.submit(high)
    while tools.running:
        tools.end(tools.running[0])
    assert tools.of("api") == [low[0], high, *low[1:]]


def test_a_high_priority_does_not_wait_behind_a_low_one() -> None:
    """A high-priority job does not wait behind a released low-priority job that finds no slot."""
    tools = LimitedDispatcher(1, api=ToolLimit(max_concurrent=1))
    first, low = job(), Job(function=print, tool_name="api", priority=-1)
    tools.submit(first, low)
    tools.submit(*(job("other") for _ in range(3)))
    tools.end(first)  # `low` is released, but other jobs are before it
    high = Job(function=print, tool_name="api", priority=1)
    tools.submit(high)
    tools.end(tools.running[0])
    assert tools.running == [high]


def test_a_job_cancelled_while_held_back_blocks_none() -> None:
    """A job that is cancelled while it is held back does not block the next one."""
    tools = LimitedDispatcher(2, api=ToolLimit(max_concurrent=1))
    jobs = [job() for _ in range(4)]
    tools.submit(*jobs)
    cancel_queued(jobs[1])  # while it is held back
    tools.end(jobs[0])
    assert tools.running == [jobs[2]]

    blockers = [job("other"), job("other"), job("other")]
    tools.submit(*blockers)
    tools.end(jobs[2])  # `jobs[3]` is released before the others
    assert tools.running == [blockers[0], jobs[3]]


def test_a_job_cancelled_after_its_release_blocks_none() -> None:
    """A job that is cancelled after its release does not block the next one."""
    tools = LimitedDispatcher(1, api=ToolLimit(max_concurrent=1))
    first, second, third = (Job(function=print, tool_name="api", priority=-1) for _ in range(3))
    tools.submit(first, second, third)
    tools.submit(job("other"))
    tools.end(first)  # `second` is released and waits for the slot
    cancel_queued(second)
    tools.end(tools.running[0])
    assert tools.running == [third]


def test_a_tool_has_at_most_one_timer() -> None:
    """Held-back jobs of a tool share one timer."""
    tools = LimitedDispatcher(4, api=ToolLimit(rate=1.0))
    tools.submit(*(job() for _ in range(100)))
    assert len(tools.timers) == 1
    tools.advance(10.0)
    assert (len(tools.of("api")), len(tools.timers)) == (4, 0)  # no timer is set while no slot is free


@given(data=st.data())
def test_jobs_of_a_tool_start_in_order(data: st.DataObject) -> None:
    """Jobs of a tool start in order of priority, then of submission, whatever happens, and all start in the end."""
    limit = ToolLimit(
        max_concurrent=data.draw(st.sampled_from([None, 1, 2])), rate=data.draw(st.sampled_from([None, 1.0, 20.0]))
    )
    tools = LimitedDispatcher(data.draw(st.integers(1, 3)), api=limit)
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["submit", "submit", "end", "cancel", "advance"])):
            case "submit":
                tool, priority = data.draw(st.sampled_from(["api", "api", "other"])), data.draw(st.integers(-1, 1))
                tools.submit(Job(function=print, tool_name=tool, priority=priority))
            case "end" if tools.running:
                tools.end(data.draw(st.sampled_from(tools.running)))
            case "cancel" if waiting := [each for each in tools.submitted if each.status is JobStatus.PENDING]:
                cancel_queued(data.draw(st.sampled_from(waiting)))
                tools.turn()
            case "advance":
                tools.advance(tools.time + data.draw(st.sampled_from([0.01, 0.5, 3.0])))
    for _ in range(2 * len(tools.submitted)):
        tools.advance(tools.time + 2.0)
        for each in list(tools.running):
            tools.end(each)
    assert not [each for each in tools.submitted if each.status is JobStatus.PENDING]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_concurrent": 0}, "max_concurrent=0 lets no job start"),
        ({"rate": 0.0}, "rate=0.0 lets no job start"),
        ({"rate": float("nan")}, "rate=nan is not a finite number"),
        ({"rate": float("inf")}, "rate=inf is not a finite number"),
        ({"burst": 0}, "burst=0 lets no job start"),
        ({"buffer": 1.0}, "buffer=1.0 is not a share"),
    ],
)
def test_a_limit_that_stops_everything_is_rejected(fields: dict[str, float], message: str) -> None:
    """A limit with which no job could start is rejected."""
    with pytest.raises(ValueError, match=message):
        ToolLimit(**fields)  # type: ignore[arg-type]
