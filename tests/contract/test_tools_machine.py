"""Hosts that share limits of tools over one store: every job starts in the end, whatever happens to slots and tools.

The test moves the clock and ends the attempts, and answers what each host asks the store when its recorder would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor_adapter import Job, JobStatus, ToolLimit
from executor_adapter.exceptions import JobError
from executor_adapter.pools.transport.envelope import raised, returned
from executor_adapter.store import SharedTools, ToolControl, ToolShare, ToolUse
from executor_adapter.supervision.tools import ToolRequest
from executor_adapter.testing import FakeClock
from tests.contract.test_supervisor_machine import SimulatedExecutor, SimulatedPool, short_work, work
from tests.insides import supervisor_of

MAX_ROUNDS = 400
"""Rounds of a fifth of a second within which every job must have run, once nothing is paused and the store answers."""

LIMITS = st.sampled_from([None, ToolLimit(max_concurrent=1), ToolLimit(max_concurrent=3), ToolLimit(rate=5.0, burst=2)])


class SharedStore:
    """Shares out tools among hosts as a database does, by a clock that the test moves."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.controls: dict[str, ToolControl] = {}
        self.uses: dict[tuple[str, str], ToolUse] = {}
        self.is_down = False

    def tools(self) -> SharedTools:
        return SharedTools(now=self.clock(), controls=dict(self.controls), uses=tuple(self.uses.values()))

    def share(self, host_id: str, request: ToolRequest) -> dict[str, ToolShare]:
        shares = {}
        for ask in request.asks:
            shares[ask.tool_name] = share = self.tools().share(ask, host_id)
            self.uses[ask.tool_name, host_id], self.controls[ask.tool_name] = share.use, share.control
        return shares

    def set(self, name: str, **changes: Any) -> None:
        self.controls[name] = replace(self.tools().control(name), **changes)


class SharingHost:
    """An executor with two workers whose tools' limits are shared."""

    def __init__(self, store: SharedStore, host_id: str, limits: dict[str, ToolLimit]) -> None:
        self.executor = SimulatedExecutor(2, clock=store.clock, tool_limits=limits)
        self.store = store
        self.host_id = host_id
        self.requests: list[ToolRequest] = []
        self.has_lost = False
        """Whether it has lost its lease, and with it slots in which jobs run on."""
        supervisor = supervisor_of(self.executor)
        self.limiter = supervisor.dispatcher.rate_limiter
        self.limiter.share(self.requests.append)
        self.jobs: list[Job] = []

    def answer(self) -> None:
        """Answer what the host has asked the store; it asks one thing at a time."""
        assert len(self.requests) <= 1
        call_soon = supervisor_of(self.executor).call_soon
        if self.store.is_down:
            call_soon(self.limiter.on_outage)
        elif self.requests:
            shares = self.store.share(self.host_id, self.requests.pop())
            call_soon(self.limiter.on_answer, shares, self.store.tools(), self.store.clock())

    def lose_lease(self) -> None:
        """Let other hosts take what this one holds."""
        for use in [use for use in self.store.uses if use[1] == self.host_id]:
            del self.store.uses[use]
        self.has_lost = True
        self.requests.clear()
        supervisor_of(self.executor).call_soon(self.limiter.on_lease_lost)

    def submit(self, **fields: Any) -> None:
        self.jobs.append(Job(pool="thread", **fields))
        self.executor.submit(self.jobs[-1])

    def end_one(self, error: BaseException | None = None) -> bool:
        """End the attempt that has run longest; return whether there was one."""
        supervisor = supervisor_of(self.executor)
        for pool in supervisor.pools.made.values():
            assert isinstance(pool, SimulatedPool)
            if pool.workers:
                outcome = returned(None) if error is None else raised(error)
                supervisor.call_soon(pool.end, pool.workers[0], outcome)
                return True
        return False

    def running(self, tool: str) -> int:
        """Return how many jobs of the tool run, or are about to."""
        return sum(job.live.assignment is not None for job in self.jobs if job.tool_name == tool)

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if job.completed_at is None]


some_job = st.fixed_dictionaries(
    {
        "function": st.sampled_from([work, short_work]),
        "tool_name": st.sampled_from([None, "api", "files", "other"]),
        "priority": st.sampled_from([0, 0, 0, 1]),
    }
)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_job_of_a_shared_tool_runs_in_the_end(data: st.DataObject) -> None:
    """Whatever runs, is limited, paused, refused, lost or unreachable in between, each job has run in the end.

    While no host loses its lease, no more jobs of a tool run than its limit allows.
    """
    clock = FakeClock(1000.0)
    store = SharedStore(clock)
    limits = {name: limit for name in ("api", "files") if (limit := data.draw(LIMITS)) is not None}
    hosts = [SharingHost(store, name, limits) for name in "ab"[: data.draw(st.integers(1, 2))]]
    actions = st.sampled_from([*ACTIONS, "submit", "submit", "end", "look"])
    for _ in range(data.draw(st.integers(1, 40))):
        act(data.draw(actions), data.draw(st.sampled_from(hosts)), data)
        if "files" in limits and not any(host.has_lost for host in hosts):
            assert sum(host.running("files") for host in hosts) <= (limits["files"].max_concurrent or math.inf)
    store.is_down = False
    for name in list(store.controls):
        store.set(name, paused_by=None)
    run_all(hosts, clock)
    assert {job.status for host in hosts for job in host.jobs} <= {JobStatus.COMPLETED}


ACTIONS = ("submit", "end", "refuse", "look", "lose", "advance", "operate")


def act(action: str, host: SharingHost, data: st.DataObject) -> None:
    """Let one thing happen to a host, or to the store or the clock that it shares with others."""
    match action:
        case "submit":
            for _ in range(data.draw(st.sampled_from([1, 5, 20]))):
                host.submit(**data.draw(some_job))
        case "end":
            host.end_one()
        case "refuse":
            host.end_one(JobError("slow down", error_code="RATE_LIMITED", retry_after=1.0))
        case "look":
            host.answer()
        case "lose":
            host.lose_lease()
        case "advance":
            host.store.clock.advance(data.draw(st.sampled_from([0.001, 0.1, 0.6, 2.0])))
        case "operate":
            tool, operation = st.sampled_from(["api", "other"]), st.sampled_from(sorted(OPERATIONS))
            operate(host.store, data.draw(tool), data.draw(operation))


def test_short_jobs_of_unlimited_tools_all_run() -> None:
    """Short jobs that waited until the store said what holds for their tools run, though every slot is taken by then.

    Each is queued in a worker behind another one, and lets the next of its tool follow.
    """
    clock = FakeClock(1000.0)
    host = SharingHost(SharedStore(clock), "a", {})
    host.submit(function=short_work)
    host.end_one()  # From now on the function is known to be short.
    for number in range(20):
        host.submit(function=short_work, tool_name=("api", "files")[number % 2])
    for _ in range(2):
        host.submit(function=short_work)
    run_all([host], clock)


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["short jobs", "long jobs"])
@pytest.mark.parametrize("limit", [ToolLimit(max_concurrent=1), ToolLimit(rate=5.0)], ids=["slots", "starts"])
def test_a_job_of_a_shared_tool_has_its_turn_where_every_worker_is_taken(limit: ToolLimit, seconds: float) -> None:
    """A job of a higher priority starts after a few others, though the store is asked when these have its worker."""
    clock = FakeClock(1000.0)
    host = SharingHost(SharedStore(clock), "a", {"files": limit})
    for _ in range(100):
        host.submit(function=work)
    host.submit(function=work, tool_name="files", priority=10)
    while not host.running("files") and host.end_one():
        host.answer()
        clock.advance(seconds)
    assert sum(job.completed_at is not None for job in host.jobs) <= 10


@pytest.mark.parametrize("slots", [1, 2])
def test_an_executor_that_cannot_use_a_slot_leaves_it_to_others(slots: int) -> None:
    """A slot that was obtained ahead goes back in a moment where others wait, and comes back in time for the job."""
    clock = FakeClock(1000.0)
    store, limits = SharedStore(clock), {"files": ToolLimit(max_concurrent=slots)}
    full, other = (SharingHost(store, name, limits) for name in ("full", "other"))
    for _ in range(200):
        full.submit(function=work)
    full.submit(function=work, tool_name="files", priority=10)
    for _ in range(1000):
        other.submit(function=work, tool_name="files")

    def let(seconds: float) -> int:
        """Let the other one end a job each 20 ms; return how many jobs of the tool ran, added up over all looks."""
        used = 0
        for _ in range(round(seconds / 0.02)):
            full.answer()
            other.answer()
            used += other.running("files")
            other.end_one()
            clock.advance(0.02)
        return used

    full.end_one()
    assert let(8.0) > 0.8 * 400 * slots
    while not full.running("files") and full.end_one():
        let(0.26)
    assert sum(job.completed_at is not None for job in full.jobs) <= 50


def test_a_slot_that_was_obtained_ahead_goes_back_with_its_job() -> None:
    """When the job for which a slot was obtained ahead ends in the queue, nothing is kept or asked for any more."""
    clock = FakeClock(1000.0)
    store = SharedStore(clock)
    host = SharingHost(store, "a", {"files": ToolLimit(max_concurrent=1)})
    for _ in range(4):
        host.submit(function=work)
    host.submit(function=work, tool_name="files", priority=10)
    host.end_one()
    for _ in range(2):
        host.answer()  # Before anything is asked for, it looks what is set.
    assert [use.held for use in store.uses.values()] == [1]
    host.executor.cancel(host.jobs[-1].job_id)
    for _ in range(4):
        host.end_one()
        host.answer()
        clock.advance(1.0)
    assert [use.held for use in store.uses.values()] == [0]
    assert not host.limiter.is_active


OPERATIONS: dict[str, dict[str, Any]] = {
    "limit": {"limit": ToolLimit(max_concurrent=1), "limited_by": "somebody"},
    "reset": {"limit": None, "limited_by": None},
    "pause": {"paused_by": "somebody"},
    "resume": {"paused_by": None},
    "down": {},
    "up": {},
}


def operate(store: SharedStore, tool: str, operation: str) -> None:
    """Set something for a tool, as an operator does, or let the store fail or answer again."""
    if changes := OPERATIONS[operation]:
        store.set(tool, **changes)
    else:
        store.is_down = operation == "down"


def run_all(hosts: Sequence[SharingHost], clock: FakeClock) -> None:
    """Let time pass, and attempts end, until every job has ended; fail if some never start."""
    for _ in range(MAX_ROUNDS):
        for host in hosts:
            while host.end_one():
                pass
            host.answer()
        if not any(host.unfinished for host in hosts):
            break
        clock.advance(0.2)
    assert [job for host in hosts for job in host.unfinished] == []
    for host in hosts:
        host.executor.shutdown(wait=False)
