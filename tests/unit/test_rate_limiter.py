"""Limits of a tool's jobs, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_adapter import Job, JobStatus
from executor_adapter.job.tool_limit import ToolLimit
from executor_adapter.supervision.dispatcher import Dispatcher
from executor_adapter.supervision.rate_limiter import RateLimiter


class World:
    """A clock, timers that run when it is moved, and the jobs that were let go."""

    def __init__(self, **limits: ToolLimit) -> None:
        self.time = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.started: list[tuple[float, Job]] = []
        self.rate_limiter = RateLimiter(
            limits,
            now=lambda: self.time,
            call_at=lambda when, call: self.timers.append((when, call)),
            release=self.start,
        )

    def start(self, job: Job) -> None:
        if self.rate_limiter.start(job):
            self.started.append((round(self.time, 6), job))

    def advance(self, until: float) -> None:
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


def test_a_tool_without_limits_is_never_kept_back() -> None:
    world = World(api=ToolLimit(max_concurrent=1))
    for _ in range(5):
        world.start(job("other"))
        world.start(job(None))
    assert len(world.started) == 10


def test_no_more_run_at_once_than_allowed_and_the_next_follows_an_end() -> None:
    world = World(api=ToolLimit(max_concurrent=2))
    jobs = [job() for _ in range(4)]
    for each in jobs:
        world.start(each)
    assert [started for _, started in world.started] == jobs[:2]
    world.rate_limiter.end(jobs[0])
    assert [started for _, started in world.started] == jobs[:3]


def test_starts_are_spread_at_the_rate_after_the_burst() -> None:
    world = World(api=ToolLimit(rate=2.0, burst=3))
    for _ in range(7):
        world.start(job())
    world.advance(10.0)
    assert [when for when, _ in world.started] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_the_buffer_leaves_a_share_of_the_rate_unused() -> None:
    world = World(api=ToolLimit(rate=10.0, buffer=0.5))
    for _ in range(3):
        world.start(job())
    world.advance(1.0)
    assert [when for when, _ in world.started] == [0.0, 0.2, 0.4]


def test_a_pause_holds_all_of_the_tool_s_jobs() -> None:
    world = World(api=ToolLimit(max_concurrent=9), other=ToolLimit(max_concurrent=9))
    world.rate_limiter.pause(job(), 30.0)
    for _ in range(3):
        world.start(job())
    world.start(job("other"))
    assert [started.tool_name for _, started in world.started] == ["other"]
    world.advance(60.0)
    assert [when for when, started in world.started if started.tool_name == "api"] == [30.0, 30.0, 30.0]


def test_a_bucket_does_not_fill_beyond_its_burst() -> None:
    world = World(api=ToolLimit(rate=1.0, burst=2))
    world.advance(1000.0)
    for _ in range(4):
        world.start(job())
    assert len(world.started) == 2


class Slots(World):
    """The dispatcher before the rate limiter: a few slots, and what has started, in order."""

    def __init__(self, slots: int, **limits: ToolLimit) -> None:
        super().__init__(**limits)
        self.dispatcher = Dispatcher(slots, {})
        self.dispatcher.rate_limiter = RateLimiter(
            limits,
            now=lambda: self.time,
            call_at=lambda when, call: self.timers.append((when, call)),
            release=self.dispatcher.push_front,
        )
        self.submitted: list[Job] = []
        self.running: list[Job] = []

    def submit(self, *jobs: Job) -> None:
        for each in jobs:
            each.live.queued_at = self.time
            self.submitted.append(each)
            self.dispatcher.push(each)
        self.turn()

    def turn(self) -> None:
        """As the supervisor's: what is due, then what can start."""
        for timer in [timer for timer in self.timers if timer[0] <= self.time]:
            self.timers.remove(timer)
            timer[1]()
        self.dispatcher.run(self.begin, lambda job: False)

    def begin(self, job: Job) -> None:
        assert not [other for other in self.submitted[: self.submitted.index(job)] if self.is_before(other, job)]
        assert not [other for other in self.submitted if self.is_before(other, job) and other.priority > job.priority]
        self.dispatcher.reserved += 1
        self.running.append(job)
        self.started.append((self.time, job))
        job.advance(JobStatus.RUNNING)

    @staticmethod
    def is_before(other: Job, job: Job) -> bool:
        """Whether a job that waits, of the same tool, is to start before this one, if it was submitted before."""
        waits = other.status is JobStatus.PENDING
        return waits and other.tool_name == job.tool_name and other.priority >= job.priority

    def end(self, job: Job) -> None:
        self.running.remove(job)
        self.dispatcher.reserved -= 1
        job.advance(JobStatus.COMPLETED)
        self.dispatcher.attempt_ended(job)
        self.turn()

    def advance(self, until: float) -> None:
        super().advance(until)
        self.turn()

    def of(self, tool: str | None) -> list[Job]:
        return [job for _, job in self.started if job.tool_name == tool]


def test_jobs_that_were_kept_back_start_first_come_first_served() -> None:
    world = Slots(4, api=ToolLimit(max_concurrent=1))
    jobs = [job() for _ in range(20)]
    world.submit(*jobs)
    while world.running:
        world.end(world.running[0])
    assert world.of("api") == jobs


def test_a_rate_keeps_the_order_while_others_hold_the_slots() -> None:
    """Whoever is let out and finds no slot is overtaken by none that is let out later."""
    world = Slots(1, api=ToolLimit(rate=10.0))
    jobs = [job() for _ in range(10)]
    world.submit(*jobs, *(job("other") for _ in range(8)))
    while world.running:
        world.end(world.running[0])
        world.advance(world.time + 0.3)
    assert world.of("api") == jobs
    assert len(world.of("other")) == 8


def test_a_higher_priority_is_let_out_first() -> None:
    world = Slots(4, api=ToolLimit(max_concurrent=1))
    low, high = [job() for _ in range(3)], Job(function=print, tool_name="api", priority=10)
    world.submit(*low)
    world.submit(high)
    while world.running:
        world.end(world.running[0])
    assert world.of("api") == [low[0], high, *low[1:]]


def test_one_of_high_priority_does_not_wait_behind_one_of_low_that_finds_no_slot() -> None:
    world = Slots(1, api=ToolLimit(max_concurrent=1))
    first, low = job(), Job(function=print, tool_name="api", priority=-1)
    world.submit(first, low)
    world.submit(*(job("other") for _ in range(3)))
    world.end(first)  # `low` is tried again, behind the others
    high = Job(function=print, tool_name="api", priority=1)
    world.submit(high)
    world.end(world.running[0])
    assert world.running == [high]


def test_one_that_ended_while_it_waited_blocks_none() -> None:
    world = Slots(2, api=ToolLimit(max_concurrent=1))
    jobs = [job() for _ in range(4)]
    world.submit(*jobs)
    jobs[1].advance(JobStatus.CANCELLED)  # while it is kept back
    world.end(jobs[0])
    assert world.running == [jobs[2]]

    blockers = [job("other"), job("other"), job("other")]
    world.submit(*blockers)
    world.end(jobs[2])  # `jobs[3]` is let out, before the others
    assert world.running == [blockers[0], jobs[3]]


def test_one_that_ended_after_it_was_let_out_blocks_none() -> None:
    world = Slots(1, api=ToolLimit(max_concurrent=1))
    first, second, third = (Job(function=print, tool_name="api", priority=-1) for _ in range(3))
    world.submit(first, second, third)
    world.submit(job("other"))
    world.end(first)  # `second` is let out, and waits for the slot
    second.advance(JobStatus.CANCELLED)
    world.end(world.running[0])
    assert world.running == [third]


def test_no_more_than_one_timer_is_set_for_a_tool() -> None:
    world = Slots(4, api=ToolLimit(rate=1.0))
    world.submit(*(job() for _ in range(100)))
    assert len(world.timers) == 1
    world.advance(10.0)
    assert (len(world.of("api")), len(world.timers)) == (4, 0)  # none is looked for while there is no slot


@given(data=st.data())
def test_no_job_of_a_tool_starts_before_one_whose_turn_it_is(data: st.DataObject) -> None:
    """Whatever comes, ends, or is cancelled in whatever order (`begin` looks); and all have started in the end."""
    limit = ToolLimit(
        max_concurrent=data.draw(st.sampled_from([None, 1, 2])), rate=data.draw(st.sampled_from([None, 1.0, 20.0]))
    )
    world = Slots(data.draw(st.integers(1, 3)), api=limit)
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["submit", "submit", "end", "cancel", "advance"])):
            case "submit":
                tool, priority = data.draw(st.sampled_from(["api", "api", "other"])), data.draw(st.integers(-1, 1))
                world.submit(Job(function=print, tool_name=tool, priority=priority))
            case "end" if world.running:
                world.end(data.draw(st.sampled_from(world.running)))
            case "cancel" if waiting := [each for each in world.submitted if each.status is JobStatus.PENDING]:
                data.draw(st.sampled_from(waiting)).advance(JobStatus.CANCELLED)
                world.turn()
            case "advance":
                world.advance(world.time + data.draw(st.sampled_from([0.01, 0.5, 3.0])))
    for _ in range(2 * len(world.submitted)):
        world.advance(world.time + 2.0)
        for each in list(world.running):
            world.end(each)
    assert not [each for each in world.submitted if each.status is JobStatus.PENDING]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_concurrent": 0}, "max_concurrent=0 lets no job start"),
        ({"rate": 0.0}, "rate=0.0 lets no job start"),
        ({"rate": float("nan")}, "rate=nan is not a finite number"),
        ({"rate": float("inf")}, "rate=inf is not a finite number"),
        ({"burst": 0}, "burst=0 lets no job start"),
        ({"buffer": 1.0}, "buffer=1.0 is not a share"),
    ],
)
def test_a_limit_that_lets_nothing_through_is_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToolLimit(**fields)  # type: ignore[arg-type]
