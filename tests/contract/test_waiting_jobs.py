"""Tests jobs, observers and coroutines that wait for other jobs of their own executor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, Transition
from executor_adapter.exceptions import ConfigurationError, JobSerializationError, QueueFullError
from executor_adapter.pools.in_process.slot_loan import current_slot_loan
from tests.contract import functions
from tests.insides import supervisor_of

TIMEOUT = 60


@pytest.fixture
def one_worker() -> Iterator[JobExecutor]:
    """An executor that runs one attempt at once."""
    executor = JobExecutor(1)
    yield executor
    executor.shutdown(timeout=0)


async def add_on_loop(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def first_of(executor: JobExecutor, function: Callable[..., Any]) -> int:
    futures = [executor.call(function, number, 1) for number in range(3)]
    concurrent.futures.wait(futures)
    return sum(future.result() for future in futures)


WAYS: dict[str, Callable[[JobExecutor, Callable[..., Any]], Any]] = {
    "result": lambda executor, add: executor.call(add, 1, 2).result(),
    "result within": lambda executor, add: executor.call(add, 1, 2).result(TIMEOUT),
    "exception": lambda executor, add: executor.call(add, 1, 2).exception() or 3,
    "run": lambda executor, add: executor.run(Job(function=add, args=(1, 2))),
    "map": lambda executor, add: sum(each.value for each in executor.map(add, [0, 1], [1, 1])),
    "map as completed": lambda executor, add: sum(
        each.value for each in executor.map(add, [0, 1], [1, 1], ordered=False)
    ),
    "wait": lambda executor, add: first_of(executor, add) - 3,
    "as_completed": lambda executor, add: next(concurrent.futures.as_completed([executor.call(add, 1, 2)])).result(),
    "as_executor": lambda executor, add: sum(executor.as_executor().map(add, [0, 1], [1, 1])),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_in_a_thread_waits_for_another_one(one_worker: JobExecutor, way: str) -> None:
    """A job that waits for another job lends it its slot, by whatever of concurrent.futures it waits."""
    assert one_worker.call(WAYS[way], one_worker, functions.add).result(TIMEOUT) == 3


@pytest.mark.parametrize("way", WAYS)
def test_a_job_in_a_coroutine_that_blocks_waits_for_another_one(one_worker: JobExecutor, way: str) -> None:
    """A coroutine that blocks its event loop for another coroutine lends its slot; that one gets another loop."""

    async def outer() -> Any:
        return WAYS[way](one_worker, add_on_loop)

    assert one_worker.call(outer).result(TIMEOUT) == 3


AWAITS: dict[str, Callable[[JobExecutor], Any]] = {
    "await": lambda executor: executor.call(add_on_loop, 1, 2),
    "wrap_future": lambda executor: asyncio.wrap_future(executor.call(add_on_loop, 1, 2)),
    "run_in_executor": lambda executor: asyncio.get_running_loop().run_in_executor(
        executor.as_executor(), functions.add, 1, 2
    ),
}


@pytest.mark.parametrize("way", AWAITS)
def test_a_coroutine_awaits_another_job(one_worker: JobExecutor, way: str) -> None:
    """A coroutine that awaits another job lends its slot, and its event loop goes on."""

    async def outer() -> Any:
        return await AWAITS[way](one_worker)

    assert one_worker.call(outer).result(TIMEOUT) == 3


def test_jobs_wait_for_one_another_in_a_chain() -> None:
    """Jobs that wait in a chain, and several of them at once, take no slot while they wait."""
    executor = JobExecutor(2)

    def count_down(left: int) -> int:
        return 0 if not left else 1 + executor.call(count_down, left - 1).result()

    with executor:
        futures = [executor.call(count_down, 5) for _ in range(6)]
        assert [future.result(TIMEOUT) for future in futures] == [5] * 6


def test_a_job_has_its_slot_again_once_the_other_one_has_ended(one_worker: JobExecutor) -> None:
    """No third job starts in the slot of a job that has waited, since it has its slot again at once."""
    submitted = threading.Event()
    others: list[Any] = []

    def outer() -> JobStatus:
        submitted.wait(TIMEOUT)
        one_worker.call(
            functions.add,
            1,
            2,
        ).result()
        status: JobStatus = others[0].job.status
        return status

    waits = one_worker.call(outer)
    low = one_worker.options(priority=-1)
    others.append(low.call(functions.add, 1, 2))
    submitted.set()
    assert waits.result(TIMEOUT) is JobStatus.PENDING
    assert others[0].result(TIMEOUT) == 3


def test_a_wait_that_outlasts_its_job_lends_no_slot(one_worker: JobExecutor) -> None:
    """What a job has left waiting for others, such as a callback, lends nothing once the job has ended."""
    loan = one_worker.call(current_slot_loan.get).result(TIMEOUT)
    assert loan is not None
    loan.begin()
    supervisor = supervisor_of(one_worker)
    supervisor.thread.catch_up(TIMEOUT)
    assert not supervisor.dispatcher.lent


def test_a_job_that_waits_for_a_place_lends_its_slot() -> None:
    """A job that submits more jobs than may wait lends its slot until there is a place."""
    with JobExecutor(1, max_pending=1) as executor:

        def outer() -> int:
            return sum(future.result() for future in [executor.call(functions.add, number, 1) for number in range(4)])

        assert executor.call(outer).result(TIMEOUT) == 10


def test_a_job_that_waits_for_itself_fails_in_words(one_worker: JobExecutor) -> None:
    """A job that submits itself again, by its dedupe_key, and waits for that fails, in a thread and in a coroutine."""
    again = one_worker.options(dedupe_key="one", retry_attempts=0)

    async def awaits() -> Any:
        await again.call(awaits)

    def blocks() -> Any:
        again.call(blocks).result()

    def waits() -> Any:
        concurrent.futures.wait([again.call(waits)])

    for function in (awaits, blocks, waits):
        with pytest.raises(RuntimeError, match="a job cannot wait for itself"):
            again.call(function).result(TIMEOUT)
    assert not supervisor_of(one_worker).dispatcher.lent


def test_what_cannot_wait_in_a_process_is_refused_at_submit(one_worker: JobExecutor) -> None:
    """A job in a process that holds its executor, or a future, is refused with the way out."""
    in_process = one_worker.options(pool="process")
    with pytest.raises(JobSerializationError, match=r"a JobExecutor cannot be sent .* pool='thread'"):
        in_process.call(WAYS["result"], one_worker, functions.add)
    with pytest.raises(JobSerializationError, match=r"a JobExecutor cannot be sent"):
        in_process.call(lambda: one_worker.run(Job(function=functions.add, args=(1, 2))))
    with pytest.raises(JobSerializationError, match="a JobFuture cannot be sent to another process"):
        in_process.call(functions.add, one_worker.call(functions.add, 1, 2), 3)


def test_a_job_cannot_wait_for_the_end_of_its_executor(one_worker: JobExecutor) -> None:
    """`shutdown` that would wait for its own caller is refused in words, and the executor stays usable."""
    error = one_worker.options(retry_attempts=0).call(one_worker.shutdown).exception(TIMEOUT)
    assert isinstance(error, RuntimeError)
    assert "shutdown(wait=False)" in str(error)
    assert one_worker.call(functions.add, 1, 2).result(TIMEOUT) == 3


def observed(act: Callable[[JobExecutor], Any], **options: Any) -> tuple[JobExecutor, list[Any]]:
    """Return an executor whose observer calls `act` when the first job starts, and a list that gets its outcome."""
    outcomes: list[Any] = []

    def observe(transition: Transition) -> None:
        if transition.status is JobStatus.RUNNING and not outcomes:
            outcomes.append(None)
            try:
                outcomes[0] = act(executor)
            except Exception as error:
                outcomes[0] = error

    executor = JobExecutor(1, observers=[observe], **options)
    return executor, outcomes


@pytest.mark.parametrize("how", [{}, {"timeout": 600.0}, {"cancel_futures": True}])
def test_an_observer_shuts_its_executor_down(how: dict[str, Any]) -> None:
    """`shutdown` returns at once in an observer, on the thread that it would wait for; the running job ends first."""
    executor, outcomes = observed(lambda executor: executor.shutdown(**how))
    future = executor.call(functions.add, 1, 2)
    assert future.result(TIMEOUT) == 3
    executor.shutdown()
    assert (outcomes, executor.is_closed) == ([None], True)


def test_an_observer_never_waits_for_a_place() -> None:
    """An observer that submits while no place is free gets QueueFullError at once, with the way out."""

    def fill(executor: JobExecutor) -> None:
        for _ in range(3):
            executor.submit(Job(function=functions.add, args=(1, 2)))

    executor, outcomes = observed(fill, max_pending=2)
    assert executor.call(functions.add, 1, 2).result(TIMEOUT) == 3
    executor.shutdown()
    assert isinstance(outcomes[0], QueueFullError)
    assert "an observer cannot wait for a place: raise max_pending" in str(outcomes[0])


@pytest.mark.parametrize("way", ["result", "wait"])
def test_an_observer_cannot_wait_for_a_job(way: str) -> None:
    """An observer that waits for a job gets a RuntimeError that names the way out, instead of holding up all jobs."""
    executor, outcomes = observed(lambda executor: WAYS[way](executor, functions.add))
    assert executor.call(functions.add, 1, 2).result(TIMEOUT) == 3
    executor.shutdown()
    assert isinstance(outcomes[0], RuntimeError)
    assert "add_done_callback" in str(outcomes[0])


@pytest.mark.parametrize("timeout", ["3", True, float("nan")])
def test_a_timeout_that_is_no_number_shuts_nothing_down(one_worker: JobExecutor, timeout: Any) -> None:
    """`shutdown` with a timeout that is not a number of seconds is refused before anything is closed."""
    with pytest.raises(ValueError, match=r"timeout=.* is not a number of seconds"):
        one_worker.shutdown(timeout=timeout)
    assert one_worker.call(functions.add, 1, 2).result(TIMEOUT) == 3


def test_a_program_that_gevent_has_patched_gets_no_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that would wait for ever on gevent's threads is refused at the start, with the way out."""
    patched = types.SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="in a program that gevent has not patched"):
        JobExecutor(1)
