"""Quarantine is bounded, however many jobs kill their workers."""

from __future__ import annotations

import weakref

import pytest

from executor_adapter import Job, JobStatus, RetryPolicy
from executor_adapter.exceptions import InvalidJobError, WorkerCrashedError
from executor_adapter.job.quarantine import MAX_QUARANTINED
from executor_adapter.pools.transport.envelope import crashed
from executor_adapter.store import JobFilter
from executor_adapter.store.memory import MemoryStore
from executor_adapter.testing import InlineExecutor
from tests.contract.test_supervisor_machine import SimulatedExecutor, SimulatedPool
from tests.insides import supervisor_of
from tests.waiting import PATIENCE

WITHOUT_CRASH_RETRIES = RetryPolicy(retry_attempts=3, crash_attempts=0)


class Argument:
    """Stands for a large value."""


def kill(argument: Argument) -> None: ...


def kill_workers(executor: SimulatedExecutor, job_id: str) -> weakref.ref[Argument]:
    """Let a job crash until it is quarantined, and return a weak reference to its argument."""
    argument = Argument()
    job = Job(job_id=job_id, function=kill, args=(argument,), pool="thread", retry=WITHOUT_CRASH_RETRIES)
    future = executor.submit(job)
    (pool,) = (pool for pool in supervisor_of(executor).pools.made.values() if isinstance(pool, SimulatedPool))
    supervisor_of(executor).call_soon(pool.end, pool.workers[0], crashed(WorkerCrashedError("gone")))
    assert future.job.status is JobStatus.FAILED
    return weakref.ref(argument)


def test_the_newest_are_held_and_the_oldest_evicted(caplog: pytest.LogCaptureFixture) -> None:
    """Quarantine holds the newest jobs and evicts the oldest."""
    executor = SimulatedExecutor(1)
    ids = [str(number) for number in range(MAX_QUARANTINED + 2)]
    arguments = [kill_workers(executor, job_id) for job_id in ids]
    assert [job.job_id for job in executor.quarantined()] == ids[2:]
    assert executor.stats().quarantined == tuple(ids[2:])
    assert [argument() is None for argument in arguments] == [True, True] + [False] * MAX_QUARANTINED
    assert "the oldest is evicted" in caplog.text

    assert not executor.release(ids[0])
    kill_workers(executor, ids[0])  # it was evicted, so it is accepted, and is the newest now
    assert [job.job_id for job in executor.quarantined()] == [*ids[3:], ids[0]]
    with pytest.raises(InvalidJobError, match="quarantined"):
        executor.submit(Job(job_id=ids[-1], function=int, pool="thread"))
    assert executor.release(ids[-1])


def test_those_of_an_earlier_executor_are_bounded_too() -> None:
    """The newest of the jobs that are put into quarantine stay there."""
    jobs = [Job(function=int) for _ in range(MAX_QUARANTINED + 3)]
    with InlineExecutor() as executor:
        executor.quarantine(jobs)
        assert executor.quarantined() == jobs[3:]


def test_a_store_in_memory_evicts_them_too() -> None:
    """A store in memory also evicts the oldest quarantined jobs."""
    store = MemoryStore(max_history=10)
    executor = SimulatedExecutor(1, store=store)
    ids = [str(number) for number in range(MAX_QUARANTINED + 20)]
    for job_id in ids:
        kill_workers(executor, job_id)
        if len(ids) - int(job_id) <= 2 or int(job_id) % 50 == 0:
            executor.flush(PATIENCE)
    executor.flush(PATIENCE)
    held = store.find(JobFilter(quarantined=True), limit=None, newest_first=False)
    assert [record.job_id for record in held.records] == ids[20:]
    executor.shutdown(timeout=0)
