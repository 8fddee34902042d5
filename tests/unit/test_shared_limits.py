"""Tests how an executor uses its share of limits that hold over several executors, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from executor_adapter import Job, ToolLimit
from executor_adapter.store import SharedTools, ToolAsk, ToolControl, ToolShare, ToolUse
from executor_adapter.supervision import tools as tool_limits
from executor_adapter.supervision.line import Line
from executor_adapter.supervision.scheduling import ReadyQueue, SlotLimits
from executor_adapter.supervision.tools import RateLimiter, ToolRequest
from tests.insides import make_dispatcher, stopped_loop

KNOWN = tool_limits.KNOWN_SECONDS


class SharedLimits:
    """A rate limiter whose limits are shared: records what it asks for, and lets the test answer."""

    def __init__(self, running: Sequence[Job] = (), **limits: ToolLimit) -> None:
        self.time = 0.0
        self.started: list[Job] = []
        self.requests: list[ToolRequest] = []
        self.answered = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.controls: dict[str, ToolControl] = {}
        self.limiter = RateLimiter(
            limits,
            stopped_loop(lambda: self.time, lambda *call: self.timers.append(call)),
            release=self.release,
            running_of=lambda _: running,
        )
        self.limiter.share(self.requests.append)
        self.queue = ReadyQueue()
        self.is_full = False
        """Whether released jobs wait for a worker."""

    def release(self, line: Line) -> None:
        """Let the jobs of a line start, until the limiter holds it back."""
        self.queue.enter(line)
        if not self.is_full:
            self.start()

    def start(self, *jobs: Job) -> None:
        """Start the jobs, unless the limiter holds them back."""
        for job in jobs:
            self.queue.push(job, ("", None, job.tool_name))
        while (line := self.queue.first()) is not None:
            first, line.place = line.first, None
            if self.limiter.start(first, line):
                self.queue.pop(line)
                self.started.append(first)

    def turn(self, free_workers: int = 10) -> None:
        """End a turn in which other jobs come first."""
        self.limiter.report(lambda _: free_workers, lambda _: False)

    @property
    def asked(self) -> ToolAsk | None:
        """What is asked for now of the one tool; None where nothing is."""
        asks = self.requests[-1].asks if len(self.requests) > self.answered else ()
        return asks[0] if asks else None

    def set(self, *controls: ToolControl) -> None:
        """Set this for tools in the store, and nothing for others."""
        self.controls = {control.tool_name: control for control in controls}

    def answer(self, *, granted: int = 0, starts: tuple[float, ...] = (), give_up: int = 0) -> None:
        """Answer the request, and give this of each tool that is asked for."""
        assert len(self.requests) == self.answered + 1
        shares = {}
        for ask in self.requests[-1].asks:
            is_served = ask.keep + granted >= ask.want and len(starts) >= ask.starts
            use = ToolUse(
                tool_name=ask.tool_name,
                host_id="this",
                held=ask.keep + granted,
                waits_since=None if is_served else 1.0,
            )
            control = ToolControl(tool_name=ask.tool_name)
            shares[ask.tool_name] = ToolShare(use=use, control=control, granted=granted, starts=starts, give_up=give_up)
        self.answered += 1
        self.limiter.on_answer(shares, SharedTools(now=0.0, controls=self.controls, uses=()), self.time)

    def learn(self, *controls: ToolControl) -> None:
        """Let the limiter look what is set for tools."""
        self.set(*controls)
        self.time += KNOWN + 0.1
        self.limiter.limits(jobs(1)[0])
        self.turn()
        self.answer()


def jobs(count: int, tool: str = "api") -> list[Job]:
    return [Job(function=print, tool_name=tool) for _ in range(count)]


@pytest.fixture
def tools() -> SharedLimits:
    shared = SharedLimits(api=ToolLimit(max_concurrent=5))
    shared.learn()
    return shared


def test_jobs_start_within_the_slots_that_are_held(tools: SharedLimits) -> None:
    """Without slots nothing starts; each slot that is shared out starts one job."""
    tools.start(*jobs(3))
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.keep, tools.asked.want, tools.started) == (0, 3, [])
    tools.answer(granted=2)
    assert len(tools.started) == 2
    tools.turn()
    assert tools.asked is None  # The store knows that it waits.


def test_the_store_is_asked_again_while_jobs_wait(tools: SharedLimits) -> None:
    """While jobs wait for a slot the store is asked every WAIT_INTERVAL, otherwise only when something changes."""
    tools.start(*jobs(2))
    tools.turn()
    tools.answer(granted=1)
    tools.turn()
    tools.time += tool_limits.WAIT_INTERVAL
    assert tools.time in {when for when, _ in tools.timers}
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.keep, tools.asked.want, tools.requests[-1].is_news) == (1, 2, False)
    tools.answer(granted=1)
    tools.turn()
    tools.time += 2 * tool_limits.CONTROLS_INTERVAL
    tools.turn()
    tools.answer()
    number = len(tools.requests)
    tools.time += 100.0
    tools.turn()
    assert len(tools.requests) == number


def test_starts_are_used_in_their_time() -> None:
    """A start that was shared out ahead lets a job start in its time and not before."""
    tools = SharedLimits(api=ToolLimit(rate=10.0))
    tools.learn()
    tools.start(*jobs(2))
    tools.turn()
    tools.answer(granted=2, starts=(0.0, 0.1))
    assert len(tools.started) == 1
    (when, call) = tools.timers[-1]
    assert when == tools.time + 0.1
    tools.time = when
    call()
    assert len(tools.started) == 2


def test_a_start_that_waits_for_a_worker_is_exchanged() -> None:
    """The next job has a start whenever a worker becomes free; one that is too old goes back for another one."""
    tools = SharedLimits(api=ToolLimit(rate=10.0))
    tools.learn()
    tools.start(*jobs(1))
    tools.is_full = True
    for _ in range(3):
        tools.limiter.report(lambda _: 0, lambda _: True)
        assert tools.asked is not None
        assert tools.asked.starts == 1
        tools.answer(granted=1, starts=(0.0,))
        tools.time += tool_limits.START_SECONDS + 0.1
    tools.time -= 0.2
    tools.start()
    assert len(tools.started) == 1
    assert [request.asks[0].unused for request in tools.requests[-3:]] == [0, 1, 1]


def test_a_slot_is_used_again_without_a_word(tools: SharedLimits) -> None:
    """While jobs wait, the slot of a job that ends starts the next one, and nothing is asked for."""
    tools.start(*jobs(9))
    tools.turn(free_workers=1)
    tools.answer(granted=1)
    tools.turn(free_workers=0)
    asked = len(tools.requests)
    for _ in range(5):
        tools.limiter.attempt_ended(tools.started[-1])
        tools.turn(free_workers=0)
    assert (len(tools.started), len(tools.requests)) == (6, asked)


def test_slots_that_cannot_be_used_are_given_back(tools: SharedLimits) -> None:
    """Where no worker is free or no job waits, the executor keeps only the slots that are in use."""
    tools.start(*jobs(2))
    tools.turn()
    tools.answer(granted=2)
    tools.limiter.attempt_ended(tools.started[0])
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.keep, tools.asked.want) == (1, 1)


def test_a_slot_that_must_be_given_up_starts_nothing_more(tools: SharedLimits) -> None:
    """When the store asks for a slot, the next attempt that ends gives it up although jobs wait."""
    tools.start(*jobs(3))
    tools.turn()
    tools.answer(granted=1)
    tools.turn()
    tools.time += tool_limits.WAIT_INTERVAL
    tools.turn()
    tools.answer(give_up=1)
    assert len(tools.started) == 1
    tools.turn()  # What it must give up is not forgotten where all slots are in use.
    tools.limiter.attempt_ended(tools.started[0])
    assert len(tools.started) == 1
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.keep, tools.asked.want) == (0, 2)


def test_a_slot_that_was_given_up_meanwhile_counts(tools: SharedLimits) -> None:
    """An answer that asks for a slot which was given up since the request does not ask for another one."""
    tools.start(*jobs(5))
    tools.turn()
    tools.answer(granted=2)
    tools.turn()
    tools.time += tool_limits.WAIT_INTERVAL
    tools.turn()
    tools.answer(give_up=1)
    tools.turn()
    tools.time += tool_limits.WAIT_INTERVAL
    tools.turn()
    tools.limiter.attempt_ended(tools.started[0])
    tools.answer(give_up=1)
    tools.limiter.attempt_ended(tools.started[1])
    assert len(tools.started) == 3


def test_slots_for_which_their_pool_has_no_worker_are_given_back(tools: SharedLimits) -> None:
    """Where a tool's jobs wait for a slot of their own pool, free slots of other pools keep none of its share.

    One slot is asked for ahead while the next job is the tool's.
    """

    def in_processes(*queued: Job) -> None:
        for job in queued:
            job.live.pool = "process"
            dispatcher.push(job)
        dispatcher.run(dispatcher.reserve, lambda job: False)

    dispatcher = make_dispatcher(SlotLimits(of_pool={"process": 2, "thread": 64}))
    dispatcher.rate_limiter = tools.limiter
    in_processes(*jobs(5))
    assert tools.asked is not None
    assert tools.asked.want == 2
    tools.answer()
    in_processes(Job(function=print), Job(function=print))
    tools.time += tool_limits.WAIT_INTERVAL
    in_processes()
    assert tools.asked is not None
    assert tools.asked.want == 1
    tools.answer()
    in_processes(Job(function=print, priority=1))
    assert tools.asked is not None
    assert tools.asked.want == 0


def test_what_is_known_of_tools_becomes_too_old(tools: SharedLimits) -> None:
    """A job of any tool waits until it is known that the tool is not paused, and this is looked up at once."""
    tools.start(*jobs(1, "other"))
    assert len(tools.started) == 1
    tools.time += KNOWN + 0.1
    tools.start(*jobs(1, "other"))
    assert len(tools.started) == 1
    tools.turn()
    tools.answer()
    assert len(tools.started) == 2


def test_tools_without_a_limit_go_on_while_the_store_is_down(tools: SharedLimits) -> None:
    """In an outage jobs of tools without a limit start; of others none that has no slot, and none of a paused tool."""
    tools.learn(ToolControl(tool_name="paused", paused_by="somebody"))
    tools.time += KNOWN + 0.1
    tools.start(*jobs(1), *jobs(1, "other"), *jobs(1, "paused"))
    assert tools.started == []
    tools.limiter.on_outage()
    assert [job.tool_name for job in tools.started] == ["other"]


def test_a_store_that_does_not_answer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Jobs wait for a store that hangs: a warning says so again and again, and no more once it has answered."""
    tools = SharedLimits()
    tools.start(*jobs(3))
    tools.turn()
    assert tools.started == []
    for number in (1, 2):
        ((tools.time, call),), tools.timers = tools.timers, []
        call()
        assert caplog.text.count("3 jobs with a tool_name wait") == number
    tools.answer()
    ((tools.time, call),), tools.timers = tools.timers, []
    call()
    assert len(tools.started) == 3
    assert caplog.text.count("the store has not answered") == 2
    assert tools.timers == []


def test_a_paused_tool_starts_nothing_until_it_is_resumed(tools: SharedLimits) -> None:
    """Jobs of a tool that was paused are held back, whether it has a limit or not, and it is looked after."""
    tools.learn(*(ToolControl(tool_name=name, paused_by="somebody") for name in ("api", "other")))
    tools.start(*jobs(1), *jobs(1, "other"), *jobs(1, "third"))
    assert [job.tool_name for job in tools.started] == ["third"]
    for is_resumed in (False, False, True):
        if is_resumed:
            tools.set()
        tools.time += tool_limits.CONTROLS_INTERVAL
        tools.turn()
        tools.answer()
    assert [job.tool_name for job in tools.started] == ["third", "other"]
    tools.turn()
    tools.answer(granted=1)
    assert [job.tool_name for job in tools.started] == ["third", "other", "api"]


def test_a_pause_that_a_job_asks_for_holds_for_a_tool_without_a_limit(tools: SharedLimits) -> None:
    """The store learns of it, and it holds here until it is over, also once the store has answered."""
    first, second = jobs(2, "other")
    tools.start(first)
    tools.limiter.pause(first, 30.0)
    tools.limiter.attempt_ended(first)
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.tool_name, tools.asked.close_for) == ("other", 30.0)
    tools.answer()
    tools.start(second)
    assert tools.started == [first]
    tools.time += 31.0
    tools.turn()
    tools.answer()
    assert tools.started == [first, second]


def test_a_pause_that_another_executor_has_asked_for_holds_for_a_tool_without_a_limit(tools: SharedLimits) -> None:
    """No job of the tool starts here before it is over, by the store's clock."""
    tools.learn(ToolControl(tool_name="other", closed_until=30.0))
    tools.start(*jobs(1, "other"))
    assert tools.started == []
    tools.set()
    tools.time += 31.0
    tools.turn()
    tools.answer()
    assert len(tools.started) == 1


def test_after_a_lost_lease_what_runs_is_counted_again(tools: SharedLimits) -> None:
    """After its lease was lost the executor starts nothing, and says what still runs; no answer of before counts."""
    tools.start(*jobs(3))
    tools.turn()
    tools.answer(granted=2)
    tools.turn()
    tools.limiter.on_lease_lost()
    tools.turn()
    assert tools.asked is not None
    assert (len(tools.started), tools.asked.keep, tools.asked.want) == (2, 2, 3)
    assert tools.requests[-1].losses == 1


@pytest.mark.parametrize("is_over", [False, True])
def test_no_slot_is_used_again_that_another_host_may_have(tools: SharedLimits, is_over: bool) -> None:
    """From the end of the lease on, the slot of an attempt that ends starts nothing until the store has answered."""
    first, second = jobs(2)
    tools.start(first)
    tools.turn()
    tools.answer(granted=1)
    tools.limiter.on_outage()
    tools.limiter.on_lease_lost(is_over=is_over)
    tools.limiter.attempt_ended(first)
    tools.start(second)
    assert tools.started == [first]
    tools.turn()
    tools.answer(granted=1)
    assert tools.started == [first, second]


def test_a_limit_that_is_set_counts_what_runs_already() -> None:
    """Jobs of a tool that had no limit count as soon as one is set."""
    tools = SharedLimits(running=jobs(2))
    tools.learn(ToolControl(tool_name="api", limit=ToolLimit(max_concurrent=1), limited_by="somebody"))
    tools.turn()
    assert tools.asked is not None
    assert (tools.asked.keep, tools.asked.want) == (2, 2)
