"""Tests how an executor uses its share of limits that hold over several executors, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from executor_adapter import Job, ToolLimit
from executor_adapter.store import ToolControl
from executor_adapter.supervision import ToolDemand
from executor_adapter.supervision.scheduling import Dispatcher, SlotLimits
from executor_adapter.supervision.tools.rate_limiter import RateLimiter

KNOWN = 1.5


class SharedTools:
    """A rate limiter whose limits are shared: records what it asks for, and lets the test answer."""

    def __init__(self, **limits: ToolLimit) -> None:
        self.time = 0.0
        self.started: list[Job] = []
        self.asked: list[ToolDemand] = []
        self.refreshes = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.limiter = RateLimiter(
            limits,
            now=lambda: self.time,
            call_at=lambda when, call: self.timers.append((when, call)),
            release=self.start,
        )
        self.limiter.share(self)

    def ask(self, demand: ToolDemand) -> None:
        self.asked.append(demand)

    def refresh(self) -> None:
        self.refreshes += 1

    def start(self, *jobs: Job) -> None:
        """Start the jobs, unless the limiter holds them back."""
        self.started += [job for job in jobs if self.limiter.start(job)]

    def turn(self, free_workers: int = 10) -> ToolDemand | None:
        """End a turn; return what the limiter asks for now."""
        self.limiter.report(lambda _: free_workers)
        return self.asked[-1] if self.asked else None

    def learn(self, *controls: ToolControl) -> None:
        """Let the limiter know what was set for tools."""
        self.limiter.on_controls({control.tool_name: control for control in controls}, 0.0, KNOWN)


def jobs(count: int, tool: str = "api") -> list[Job]:
    return [Job(function=print, tool_name=tool) for _ in range(count)]


@pytest.fixture
def tools() -> SharedTools:
    shared = SharedTools(api=ToolLimit(max_concurrent=5))
    shared.learn()
    return shared


def test_jobs_start_within_the_slots_that_are_held(tools: SharedTools) -> None:
    """Without slots nothing starts; each slot that is shared out starts one job."""
    tools.start(*jobs(3))
    demand = tools.turn()
    assert demand is not None
    assert (demand.keep, demand.want, tools.started) == (0, 3, [])
    tools.limiter.on_share("api", slots=2, starts=0, give_up=0)
    assert len(tools.started) == 2
    demand = tools.turn()
    assert demand is not None
    assert (demand.keep, demand.want, demand.number) == (2, 3, 1)


def test_a_slot_is_used_again_without_a_word(tools: SharedTools) -> None:
    """While jobs wait, the slot of a job that ends starts the next one, and nothing is asked for."""
    tools.start(*jobs(9))
    tools.turn(free_workers=1)
    tools.limiter.on_share("api", slots=1, starts=0, give_up=0)
    tools.turn(free_workers=0)
    asked = len(tools.asked)
    for _ in range(5):
        tools.limiter.end(tools.started[-1])
        tools.turn(free_workers=0)
    assert (len(tools.started), len(tools.asked)) == (6, asked)


def test_slots_that_cannot_be_used_are_given_back(tools: SharedTools) -> None:
    """Where no worker is free or no job waits, the executor keeps only the slots that are in use."""
    tools.start(*jobs(2))
    tools.turn()
    tools.limiter.on_share("api", slots=2, starts=0, give_up=0)
    tools.turn()
    tools.limiter.end(tools.started[0])
    demand = tools.turn()
    assert demand is not None
    assert (demand.keep, demand.want) == (1, 1)


def test_a_slot_that_must_be_given_up_starts_nothing_more(tools: SharedTools) -> None:
    """When the store asks for a slot, the next attempt that ends gives it up although jobs wait."""
    tools.start(*jobs(3))
    tools.turn()
    tools.limiter.on_share("api", slots=1, starts=0, give_up=0)
    tools.limiter.on_share("api", slots=0, starts=0, give_up=1)
    assert len(tools.started) == 1
    tools.limiter.end(tools.started[0])
    assert len(tools.started) == 1
    demand = tools.turn()
    assert demand is not None
    assert (demand.keep, demand.want) == (0, 2)


def test_slots_for_which_their_pool_has_no_worker_are_given_back(tools: SharedTools) -> None:
    """Where a tool's jobs wait for a slot of their own pool, free slots of other pools keep none of its share."""

    def in_processes(*queued: Job) -> None:
        for job in queued:
            job.live.pool = "process"
            dispatcher.push(job)
        dispatcher.run(dispatcher.reserve, lambda job: False)

    dispatcher = Dispatcher(SlotLimits(of_pool={"process": 1, "thread": 64}), {})
    dispatcher.rate_limiter = tools.limiter
    in_processes(*jobs(2))
    assert tools.asked[-1].want == 1
    in_processes(Job(function=print))
    assert tools.asked[-1].want == 0


def test_slots_are_given_back_though_an_answer_crosses_the_last_demand(tools: SharedTools) -> None:
    """An answer of the store that comes when nothing is needed any more is answered: it still counts the slots."""
    tools.start(*jobs(1))
    tools.turn()
    tools.limiter.on_share("api", slots=1, starts=0, give_up=0)
    tools.turn()
    tools.limiter.end(tools.started[0])
    before = tools.turn()
    tools.limiter.on_share("api", slots=0, starts=0, give_up=1)
    after = tools.turn()
    assert before is not None
    assert after is not None
    assert [(demand.keep, demand.want, demand.number) for demand in (before, after)] == [(0, 0, 1), (0, 0, 2)]
    asked = len(tools.asked)
    tools.turn()
    assert len(tools.asked) == asked


def test_what_is_known_of_tools_becomes_too_old(tools: SharedTools) -> None:
    """A job of any tool waits until it is known that the tool is not paused, and this is looked up at once."""
    tools.start(*jobs(1, "other"))
    assert (len(tools.started), tools.refreshes) == (1, 0)
    tools.time = KNOWN + 0.1
    tools.start(*jobs(1, "other"))
    assert len(tools.started) == 1
    assert tools.refreshes > 0
    tools.limiter.on_controls({}, 0.0, KNOWN)
    assert len(tools.started) == 2


def test_a_store_that_does_not_answer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Jobs wait for a store that hangs: a warning says so again and again, and no more once it has answered."""
    tools = SharedTools()
    tools.start(*jobs(3))
    assert tools.started == []
    for number in (1, 2):
        ((tools.time, call),), tools.timers = tools.timers, []
        call()
        assert caplog.text.count("3 jobs with a tool_name wait") == number
    tools.learn()
    ((tools.time, call),), tools.timers = tools.timers, []
    call()
    assert len(tools.started) == 3
    assert caplog.text.count("the store has not answered") == 2
    assert tools.timers == []


def test_a_paused_tool_starts_nothing_until_it_is_resumed(tools: SharedTools) -> None:
    """Jobs of a tool that was paused are held back, whether it has a limit or not, and it is looked after."""
    tools.learn(*(ToolControl(tool_name=name, paused_by="somebody") for name in ("api", "other")))
    tools.start(*jobs(1), *jobs(1, "other"), *jobs(1, "third"))
    assert [job.tool_name for job in tools.started] == ["third"]
    assert tools.refreshes > 0
    tools.learn()
    assert [job.tool_name for job in tools.started] == ["third", "other"]
    tools.turn()
    tools.limiter.on_share("api", slots=1, starts=0, give_up=0)
    assert [job.tool_name for job in tools.started] == ["third", "other", "api"]


def test_after_a_lost_lease_what_runs_is_counted_again(tools: SharedTools) -> None:
    """After its lease was lost the executor starts nothing, and says what still runs."""
    tools.start(*jobs(3))
    tools.turn()
    tools.limiter.on_share("api", slots=2, starts=0, give_up=0)
    tools.limiter.on_lease_lost()
    demand = tools.turn()
    assert demand is not None
    assert (len(tools.started), demand.keep, demand.want, demand.number) == (2, 2, 3, 2)


def test_a_limit_that_is_set_counts_what_runs_already() -> None:
    """Jobs of a tool that had no limit count as soon as one is set."""
    running = jobs(2)
    tools = SharedTools()
    tools.limiter = RateLimiter(
        {}, now=lambda: tools.time, call_at=lambda *_: None, release=tools.start, running_of=lambda _: running
    )
    tools.limiter.share(tools)
    tools.learn(ToolControl(tool_name="api", limit=ToolLimit(max_concurrent=1), limited_by="somebody"))
    demand = tools.turn()
    assert demand is not None
    assert (demand.keep, demand.want) == (2, 2)
