"""Functions called as jobs: `call`, `options`, awaited futures, and the standard executor."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import operator
import os
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

from executor_adapter import JobExecutor, JobStatus, current_job
from executor_adapter.config import Settings
from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError, JobCancelledError
from executor_adapter.testing import InlineExecutor
from tests.waiting import PATIENCE, wait_for


class Failing:
    """Counts its calls, each of which fails."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        raise LookupError(f"call {self.calls}")


def describe(*args: object, **kwargs: object) -> tuple[object, ...]:
    return args, kwargs, current_job().attempt


# --- call and options ---


def test_a_call_takes_the_arguments_as_the_function_does() -> None:
    """`call` passes positional and keyword arguments on, also those that have the names of its own."""
    with InlineExecutor() as executor:
        assert executor.call(describe, 1, function=2, self=3).result() == ((1,), {"function": 2, "self": 3}, 1)
        assert executor.call("builtins:len", "abc").result() == 3


def test_options_are_those_of_the_jobs() -> None:
    """`options` sets the fields of the jobs of `call` and `map`; further options win over earlier ones."""
    with InlineExecutor() as executor:
        careful = executor.options(max_runtime=5, tool_name="api").options(max_runtime=7)
        job = careful.call(len, "abc").job
        assert (job.max_runtime, job.tool_name) == (7.0, "api")
        (result,) = careful.map(len, ["abc"], retry_attempts=0)
        assert result.unwrap() == 3
        assert executor.call(len, "abc").job.max_runtime == 3600.0


@pytest.mark.parametrize("options", [{"pool": "proces"}, {"poll": "process"}, {"args": (1,)}, {"job_id": "one"}])
@pytest.mark.parametrize("method", ["options", "as_executor"])
def test_wrong_options_are_refused_at_once(method: str, options: dict[str, object]) -> None:
    """An option that is wrong, unknown or of a single call is refused before anything is called, by its name."""
    with InlineExecutor() as executor, pytest.raises(InvalidJobError, match=next(iter(options))):
        getattr(executor, method)(**options)


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_a_manager_is_shared_with_jobs(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of a `multiprocessing.Manager` works in a worker process, also in one that started before the manager."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", start_method)
    with JobExecutor(1, config=Settings()) as executor:
        in_process = executor.options(pool="process", retry_attempts=0)
        in_process.call(os.getpid).result()
        with multiprocessing.Manager() as manager:
            shared = manager.dict()
            in_process.call(operator.setitem, shared, "worker", 1).result()
            assert dict(shared) == {"worker": 1}


# --- await ---


def test_an_awaited_future_gives_the_value_or_the_error(executor: JobExecutor) -> None:
    """`await` gives what `result` does, for a job that runs and for one that has ended."""

    async def run() -> None:
        future = executor.call(describe, 1)
        assert await future == await future == ((1,), {}, 1)
        with pytest.raises(LookupError, match="call 1"):
            await executor.options(retry_attempts=0).call(Failing())
        assert await asyncio.gather(*(executor.call(abs, -number) for number in range(4))) == [0, 1, 2, 3]

    asyncio.run(run())


def test_cancelling_the_awaiting_task_cancels_the_job(executor: JobExecutor) -> None:
    """The job of an awaited future ends when the task is cancelled, and goes on where it is shielded."""

    async def run() -> None:
        future = executor.call(asyncio.sleep, 3600)
        shielded = executor.call(asyncio.sleep, 3600)
        for awaited in (future, asyncio.shield(shielded)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await awaited
        with pytest.raises(JobCancelledError):
            await future
        assert not shielded.done()
        shielded.cancel()

    asyncio.run(run())


def test_awaiting_a_job_does_not_wait_for_callbacks(executor: JobExecutor) -> None:
    """`await` and `wrap_future` return while a callback of another future blocks."""
    ends, called, release = threading.Event(), threading.Event(), threading.Event()

    def block(_: object) -> None:
        called.set()
        release.wait()

    async def run() -> None:
        executor.call(ends.wait).add_done_callback(block)
        ends.set()
        await asyncio.to_thread(called.wait, PATIENCE)
        async with asyncio.timeout(PATIENCE):
            assert await executor.call(asyncio.sleep, 0, 1) == 1
            assert await asyncio.wrap_future(executor.call(asyncio.sleep, 0, 2)) == 2

    try:
        asyncio.run(run())
    finally:
        release.set()


def test_a_job_that_is_cancelled_elsewhere_does_not_cancel_its_awaiter(executor: JobExecutor) -> None:
    """The awaiting task gets JobCancelledError, and not the CancelledError that would end it."""

    async def run() -> None:
        future = executor.call(asyncio.sleep, 3600)
        asyncio.get_running_loop().call_later(0.01, future.cancel)
        with pytest.raises(JobCancelledError):
            await future

    asyncio.run(run())


def test_a_loop_that_is_closed_meanwhile_does_not_matter(
    executor: JobExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose awaiter's loop is closed ends without an error in the log."""
    end = threading.Event()

    async def run() -> None:
        task = asyncio.ensure_future(future)
        await asyncio.sleep(0.01)
        task.cancel()

    future = executor.call(end.wait)
    asyncio.run(run())
    end.set()
    wait([future], PATIENCE)
    executor.shutdown()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# --- as_executor ---


def test_the_standard_executor_retries_only_when_asked() -> None:
    """Code for a standard executor expects one call; given `retry_attempts`, there are more."""
    with InlineExecutor() as executor:
        once, thrice = Failing(), Failing()
        assert isinstance(executor.as_executor().submit(once).exception(timeout=0), LookupError)
        assert once.calls == 1
        executor.as_executor(retry_attempts=2, retry_delay=0).submit(thrice)
        executor.clock.advance(1)
        assert thrice.calls == 3


def test_the_event_loop_runs_calls_in_it(executor: JobExecutor) -> None:
    """`loop.run_in_executor` takes it, and cancelling what it returns ends the call."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with executor.as_executor(pool="process") as pool:
            assert await loop.run_in_executor(pool, pow, 2, 8) == 256
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await loop.run_in_executor(pool, time.sleep, 3600)
            # The call is killed, else leaving would wait for it for an hour.

    asyncio.run(run())


def test_its_shutdown_leaves_the_job_executor_open(executor: JobExecutor) -> None:
    """Leaving the standard executor waits for its own calls, refuses further ones, and ends nothing else."""
    other, end = executor.call(asyncio.sleep, 3600), threading.Event()
    with executor.as_executor() as pool:
        future = pool.submit(end.wait)
        threading.Timer(0.05, end.set).start()
    assert future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(len, "abc")
    assert not other.done()
    assert executor.call(len, "abc").result() == 3


def test_it_cancels_what_has_not_started(executor: JobExecutor) -> None:
    """`shutdown(cancel_futures=True)` cancels queued calls, and lets running ones end."""
    end = threading.Event()
    pool = executor.as_executor()
    running = [pool.submit(end.wait) for _ in range(2)]
    queued = [pool.submit(len, "abc") for _ in range(3)]
    wait_for(lambda: all(future.running() for future in running))
    pool.shutdown(wait=False, cancel_futures=True)
    end.set()
    pool.shutdown()
    assert [future.result() for future in running] == [True, True]
    assert all(future.cancelled() for future in queued)
    with pytest.raises(CancelledError):
        queued[0].result()
    assert queued[0].job.status is JobStatus.CANCELLED


def test_a_closed_job_executor_takes_no_calls() -> None:
    """A standard executor whose JobExecutor is shut down raises ExecutorClosedError, which is a RuntimeError."""
    executor = JobExecutor(1)
    pool = executor.as_executor()
    executor.shutdown()
    with pytest.raises(ExecutorClosedError):
        pool.submit(len, "abc")


def test_calls_that_would_become_one_are_refused() -> None:
    """A `dedupe_key`, which would merge all live calls, is refused."""
    with InlineExecutor() as executor, pytest.raises(InvalidJobError, match="dedupe_key='one' would merge"):
        executor.options(dedupe_key="one").as_executor()
