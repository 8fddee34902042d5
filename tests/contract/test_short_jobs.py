"""Short jobs are queued behind one another in a worker, as many as take a moment together."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from executor_adapter import Job
from executor_adapter.pools.base import Assignment, WorkerPool
from executor_adapter.pools.kinds import pool_kind
from executor_adapter.pools.transport.envelope import returned
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import SlotLimits
from executor_adapter.supervision.supervisor import Supervisor
from tests.contract.process_pool.harness import MAX_BEHIND, harness
from tests.waiting import PATIENCE


class TakesTime(WorkerPool):
    """Ends each attempt at once, and reports that it took so many seconds."""

    def __init__(self, supervisor: Supervisor, seconds: float) -> None:
        super().__init__(supervisor, 1)
        self.seconds = seconds
        self.may_be_behind: list[int] = []

    def start(self, assignment: Assignment) -> None:
        self.may_be_behind.append(assignment.max_behind)
        assignment.started_at, assignment.ended_at = 0.0, self.seconds
        self.supervisor.ended(assignment, returned(None))

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        raise AssertionError("every attempt has ended")

    def close(self, on_closed: Callable[[], None]) -> None:
        on_closed()


@pytest.mark.parametrize(("seconds", "behind"), [(0.0, 32), (0.0005, 32), (0.001, 16), (0.002, 8), (0.0021, 0)])
def test_as_many_jobs_may_be_queued_behind_one_as_take_a_moment(seconds: float, behind: int) -> None:
    """Behind a job of a known short function there may be 32, fewer if they would take more than 16 ms together."""
    pools: list[TakesTime] = []

    def make_pool(_: str, supervisor: Supervisor) -> WorkerPool:
        pools.append(TakesTime(supervisor, seconds))
        return pools[0]

    supervisor = Supervisor(
        limits=SlotLimits(1),
        make_pool=make_pool,
        kind_of=pool_kind,
        observers=(),
        max_pending=None,
        tool_limits={},
        memory_guard=None,
        read_capacity=Capacity,
        kill_grace=5.0,
        output="forward",
    )
    for _ in range(2):
        supervisor.admit(Job(function=math.sqrt, args=(2.0,), pool="thread")).result(PATIENCE)
    supervisor.close(cancel_pending=False, cancel_running=False)
    supervisor.thread.wait()
    assert pools[0].may_be_behind == [0, behind]


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_worker_gets_no_more_short_jobs_than_it_may(kind: str) -> None:
    """A worker gets as many jobs behind the running one as that allows, and the rest waits."""
    with harness(1, kind=kind) as pool:
        pool.value(pool.submit(abs, 1))
        calls = [pool.submit(abs, 1, short=True) for _ in range(20)]
        pool.turn(0)
        assert len(pool.pending) == len(calls) - (1 + MAX_BEHIND)
        pool.until_ended(*calls)
