"""Limits of a tool's jobs, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from executor_adapter import Job
from executor_adapter.throttle import Throttle, ToolLimit


class World:
    """A clock, timers that run when it is moved, and the jobs that were let go."""

    def __init__(self, **limits: ToolLimit) -> None:
        self.time = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.started: list[tuple[float, Job]] = []
        self.throttle = Throttle(
            limits,
            now=lambda: self.time,
            call_at=lambda when, call: self.timers.append((when, call)),
            let_go=self.start,
        )

    def start(self, job: Job) -> None:
        if self.throttle.start(job):
            self.started.append((round(self.time, 6), job))

    def advance(self, until: float) -> None:
        while due := [timer for timer in self.timers if timer[0] <= until]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.time = max(self.time, first[0])
            first[1]()
        self.time = until


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
    world.throttle.end(jobs[0])
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
    world.throttle.pause(job(), 30.0)
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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_concurrent": 0}, "max_concurrent=0 lets no job start"),
        ({"rate": 0.0}, "rate=0.0 lets no job start"),
        ({"burst": 0}, "burst=0 lets no job start"),
        ({"buffer": 1.0}, "buffer=1.0 is no share"),
    ],
)
def test_a_limit_that_lets_nothing_through_is_refused(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ToolLimit(**fields)  # type: ignore[arg-type]
