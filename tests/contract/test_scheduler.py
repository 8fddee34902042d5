"""The schedulers, in asyncio programs without Prefect."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus
from executor_adapter.config import CollectionSettings, JobSettings, ProcessingSettings, Settings, Tool
from executor_adapter.exceptions import ConfigurationError, ExecutorClosedError, InvalidJobError, JobSerializationError
from executor_adapter.scheduler import (
    CollectionScheduler,
    ProcessingScheduler,
    collection_scheduler,
    processing_scheduler,
)
from executor_adapter.store import JobStore
from executor_adapter.store.memory import MemoryStore
from tests.waiting import PATIENCE


def collect(tool_name: str, collection_type: str, **kwargs: Any) -> dict[str, Any]:
    return {"records_collected": 3, "tool": tool_name, "type": collection_type, "own": kwargs}


def describe(data: list[int], processing_stage: str) -> dict[str, Any]:
    return {"records_processed": len(data), "stage": processing_stage, "pid": os.getpid()}


def plain(value: int) -> int:
    return value


async def ended_job(scheduler: CollectionScheduler | ProcessingScheduler, job_id: str) -> Job:
    """Wait until the job has ended, and return it."""
    for _ in range(2000):
        job = await scheduler.get_job_status(job_id)
        assert job is not None
        if job.status.is_terminal:
            return job
        await asyncio.sleep(0.005)
    raise AssertionError("the job did not end")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_manual_job_gets_what_its_function_takes() -> None:
    """A manual job's function gets the tool name and collection type that it accepts."""

    async def main() -> None:
        scheduler = CollectionScheduler(2, config=Settings())
        await scheduler.start()
        try:
            job_id = await scheduler.add_manual_job("collection", collect, tool_name="radar", depth=2)
            job = await ended_job(scheduler, job_id)
            assert (job.status, job.job_type, job.records_processed) == ("completed", "collection", 3)
            assert job.kwargs == {"tool_name": "radar", "collection_type": "manual", "depth": 2}
            assert job.attempts[0].pool == "thread"
        finally:
            await scheduler.stop()
            scheduler.close()

    run(main)


def test_a_function_without_a_signature_gets_only_the_caller_s_own_arguments() -> None:
    """A function without a signature gets only the caller's own arguments."""

    async def main() -> None:
        scheduler = CollectionScheduler(2, config=Settings())
        await scheduler.start()
        try:
            job = await ended_job(scheduler, await scheduler.add_manual_job("collection", dict, "radar", depth=2))
            assert (job.status, job.kwargs) == ("completed", {"depth": 2})
        finally:
            scheduler.close()

    run(main)


def test_a_processing_job_runs_in_a_process_with_its_data() -> None:
    """A processing job runs in a worker process and gets its data."""

    async def main() -> None:
        scheduler = ProcessingScheduler(1, config=Settings())
        await scheduler.start()
        try:
            job_id = await scheduler.add_processing_job(describe, "radar", "validation", data=[1, 2, 3])
            job = await ended_job(scheduler, job_id)
            assert (job.status, job.records_processed) == ("completed", 3)
            assert job.attempts[0].pool == "process"
            assert job.attempts[0].pid not in (None, os.getpid())
        finally:
            scheduler.close()

    run(main)


def test_jobs_added_before_the_start_run_after_it() -> None:
    """Jobs added before `start` run after it."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        job_id = await scheduler.add_manual_job("collection", plain, value=1)
        job = await scheduler.get_job_status(job_id)
        assert job is not None
        assert job.status is JobStatus.PENDING
        await scheduler.start()
        assert (await ended_job(scheduler, job_id)).status is JobStatus.COMPLETED
        await scheduler.stop()

    run(main)


def test_an_argument_the_function_cannot_take_is_refused() -> None:
    """An argument that the function cannot take is refused when the job is added."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        with pytest.raises(InvalidJobError, match="takes no argument 'vlaue': did you mean value"):
            await scheduler.add_manual_job("collection", plain, vlaue=1)
        with pytest.raises(InvalidJobError, match="'max_runtime' is a field of Job"):
            await scheduler.add_manual_job("collection", collect, max_runtime=5)
        with pytest.raises(InvalidJobError, match="cannot be imported"):
            await scheduler.add_manual_job("collection", "no.such:function")
        assert await scheduler.get_all_jobs() == []

    run(main)


def test_limits_come_from_the_scheduler_s_section_unless_the_job_has_its_own() -> None:
    """A job without limits of its own gets those of the scheduler's section."""

    async def main() -> None:
        config = Settings(collection=CollectionSettings(job_timeout=7.0, retry_attempts=1, retry_delay=2.0))
        scheduler = CollectionScheduler(config=config)
        await scheduler.start()
        try:
            added = await scheduler.add_manual_job("collection", plain, value=1)
            own = Job(function=plain, args=(1,), max_runtime=9.0)
            await scheduler.job_queue.add_job(own)
            configured = await ended_job(scheduler, added)
            assert (configured.max_runtime, configured.retry_attempts, configured.retry_delay) == (7.0, 1, 2.0)
            assert (own.max_runtime, own.retry_attempts) == (9.0, 1)
        finally:
            scheduler.close()

    run(main)


@pytest.mark.parametrize(
    ("sections", "pool"),
    [
        ({}, "process"),
        ({"job": JobSettings(pool="thread")}, "thread"),
        ({"tools": {"radar": Tool(job=JobSettings(pool="thread"))}}, "thread"),
        ({"job": JobSettings(pool="thread"), "tools": {"radar": Tool(job=JobSettings(pool="process"))}}, "process"),
    ],
)
def test_a_pool_of_the_settings_wins_over_the_processing_schedulers_own(sections: dict[str, Any], pool: str) -> None:
    """A pool from the settings wins over the processing scheduler's choice."""

    async def main() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(**sections))
        early = await scheduler.add_processing_job(os.getpid, "radar")
        await scheduler.start()
        try:
            late = await scheduler.add_processing_job(os.getpid, "radar")
            assert [(await ended_job(scheduler, job_id)).attempts[0].pool for job_id in (early, late)] == [
                pool,
                pool,
            ]
        finally:
            scheduler.close()

    run(main)


def test_a_live_job_with_the_same_dedupe_key_is_given_instead_of_a_second_one() -> None:
    """Adding a job with the dedupe_key of a live job returns that job's id."""

    async def main() -> None:
        release = threading.Event()
        scheduler = CollectionScheduler(1, config=Settings())

        def waiting() -> Job:
            return Job(function=release.wait, kwargs={"timeout": 20}, dedupe_key="one")

        early = [await scheduler.job_queue.add_job(waiting()) for _ in range(2)]
        assert early[0] == early[1]
        await scheduler.start()
        try:
            assert await scheduler.job_queue.add_job(waiting()) == early[0]
            assert [job.job_id for job in await scheduler.get_all_jobs()] == [early[0]]
            release.set()
            assert (await ended_job(scheduler, early[0])).status is JobStatus.COMPLETED
            assert await scheduler.job_queue.add_job(waiting()) != early[0]
        finally:
            scheduler.close()

    run(main)


def test_a_job_made_by_the_caller_gets_only_what_it_lacks() -> None:
    """A job that the caller made keeps its own values and gets only missing ones."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        job = Job(function=collect, args=("mine",), tool_name="radar", metadata={"collection_type": "full"})
        await scheduler.job_queue.add_job(job)
        assert job.kwargs == {"collection_type": "full"}

    run(main)


def test_a_copy_of_a_job_s_arguments_runs_again() -> None:
    """A job's args and kwargs, copied to a new job, run again."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        await scheduler.start()
        try:
            first = await ended_job(scheduler, await scheduler.add_manual_job("collection", collect, tool_name="radar"))
            again = Job(
                job_id=f"{first.job_id}_retry", function=first.function, args=first.args, kwargs=first.kwargs,
                tool_name=first.tool_name,
            )  # fmt: skip
            await scheduler.job_queue.add_job(again)
            assert (await ended_job(scheduler, again.job_id)).records_processed == 3
            with pytest.raises(InvalidJobError, match="known already"):
                await scheduler.job_queue.add_job(again)
        finally:
            scheduler.close()

    run(main)


def test_stop_cancels_what_waits_and_lets_what_runs_end() -> None:
    """`stop` cancels waiting jobs and lets running ones end."""

    async def main() -> None:
        release = threading.Event()
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        running = await scheduler.add_manual_job("collection", release.wait, timeout=20)
        waiting = await scheduler.add_manual_job("collection", plain, value=1)
        jobs = [await scheduler.get_job_status(job_id) for job_id in (running, waiting)]
        while jobs[0] is not None and jobs[0].status is not JobStatus.RUNNING:
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(scheduler.stop())
        while jobs[1] is not None and jobs[1].status is not JobStatus.CANCELLED:
            await asyncio.sleep(0.005)
        release.set()
        await stopping
        assert jobs[0] is not None
        assert jobs[0].status is JobStatus.COMPLETED

    run(main)


def test_a_stopped_scheduler_starts_again_and_remembers() -> None:
    """A stopped scheduler starts again and still knows its jobs."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        for value in range(2):
            await scheduler.start()
            await scheduler.start()
            await ended_job(scheduler, await scheduler.add_manual_job("collection", plain, value=value))
            await scheduler.stop()
            await scheduler.stop()
        scheduler.close()
        assert [job.status for job in await scheduler.get_all_jobs()] == ["completed", "completed"]

    run(main)


def test_two_starts_at_once_open_one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `start` while the first one opens the store uses that store; each one is closed by `close`."""
    opened, closed, both_begun = list[JobStore](), list[JobStore](), threading.Event()

    class Store(MemoryStore):
        def close(self) -> None:
            closed.append(self)

    def open_slowly(url: str) -> JobStore:
        assert both_begun.wait(PATIENCE)
        opened.append(Store())
        return opened[-1]

    async def main() -> None:
        monkeypatch.setattr("executor_adapter.scheduler.base.open_store", open_slowly)
        scheduler = CollectionScheduler(1, config=Settings(), store="memory:")
        starts = [asyncio.create_task(scheduler.start()) for _ in range(2)]
        await asyncio.sleep(0)  # Lets both begin.
        both_begun.set()
        await asyncio.gather(*starts)
        scheduler.close()

    run(main)
    assert (len(opened), closed) == (1, opened)


def test_jobs_added_after_the_close_wait_for_the_next_start() -> None:
    """Jobs added after `close` wait for the next start, also in the ready-made schedulers."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        await scheduler.start()
        await scheduler.stop()
        scheduler.close()
        job_id = await scheduler.add_manual_job("collection", plain, value=1)
        waiting = await scheduler.get_job_status(job_id)
        assert waiting is not None
        assert waiting.status is JobStatus.PENDING
        await scheduler.start()
        assert (await ended_job(scheduler, job_id)).status == "completed"
        scheduler.close()

    run(main)


def test_a_job_that_cannot_be_pickled_keeps_no_other_from_starting() -> None:
    """`start` discards it, says so, and runs all others."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings(job=JobSettings(pool="process")))
        broken = await scheduler.add_manual_job("collection", plain, value=threading.Lock())
        sound = await scheduler.add_manual_job("collection", plain, value=1)
        with pytest.raises(JobSerializationError):
            await scheduler.start()
        assert (await ended_job(scheduler, sound)).status is JobStatus.COMPLETED
        assert await scheduler.get_job_status(broken) is None
        scheduler.close()

    run(main)


def test_jobs_that_a_start_could_not_submit_wait_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `close` during a `start` loses no job."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        job_ids = [await scheduler.add_manual_job("collection", plain, value=value) for value in range(3)]
        submit, calls = JobExecutor.submit, itertools.count()

        def close_meanwhile(executor: JobExecutor, job: Job) -> JobFuture:
            if next(calls) == 1:
                scheduler.close()
            return submit(executor, job)

        with monkeypatch.context() as patched:
            patched.setattr(JobExecutor, "submit", close_meanwhile)
            with pytest.raises(ExecutorClosedError):
                await scheduler.start()
        await scheduler.start()
        ended = [await ended_job(scheduler, job_id) for job_id in job_ids]
        assert [job.status for job in ended[1:]] == ["completed", "completed"]
        scheduler.close()

    run(main)


def test_a_signal_handler_may_close_a_scheduler_while_jobs_are_added() -> None:
    """`close` may interrupt an `add` of its own thread at any point."""

    async def main(seconds: float) -> None:
        scheduler, closed = CollectionScheduler(config=Settings()), threading.Event()
        await scheduler.start()

        def close(*_: object) -> None:
            scheduler.close()
            closed.set()

        previous = signal.signal(signal.SIGALRM, close)
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            while not closed.is_set():
                with contextlib.suppress(ExecutorClosedError):
                    await scheduler.add_manual_job("collection", plain, value=1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        for job in await scheduler.get_all_jobs():
            assert job.status.is_terminal or job.live.future is None

    for round_ in range(50):
        asyncio.run(main(1e-3 + 2e-5 * round_))


def test_cleanup_forgets_jobs_that_are_long_over_and_no_others() -> None:
    """Cleanup forgets jobs that finished long ago and no others."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        await scheduler.start()
        over = await scheduler.add_manual_job("collection", plain, value=1)
        await ended_job(scheduler, over)
        assert await scheduler.cleanup_old_jobs(max_age_hours=1) == 0
        await scheduler.stop()
        waiting = await scheduler.add_manual_job("collection", plain, value=2)
        assert await scheduler.cleanup_old_jobs(max_age_hours=0) == 1
        assert await scheduler.get_job_status(over) is None
        assert await scheduler.get_job_status(waiting) is not None

    run(main)


def test_listing_filters_and_pages() -> None:
    """`list_jobs` filters by field and returns pages."""

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings())
        for number in range(6):
            await scheduler.add_manual_job("odd" if number % 2 else "even", plain, tool_name="radar", value=number)
        odd = await scheduler.job_queue.list_jobs(job_type="odd", offset=1, limit=1)
        assert [job.kwargs["value"] for job in odd] == [3]
        assert await scheduler.job_queue.list_jobs(status=JobStatus.FAILED) == []
        assert len(await scheduler.job_queue.list_jobs(tool_name="radar")) == 6

    run(main)


def test_ready_made_schedulers_read_the_configuration_when_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ready-made schedulers read the configuration at `start`."""

    async def main() -> None:
        monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", str(tmp_path / "config.yaml"))
        (tmp_path / "config.yaml").write_text("collection:\n  job_timeout: -5\n")
        with pytest.raises(ConfigurationError, match=r"collection\.job_timeout: -5"):
            await collection_scheduler.start()
        (tmp_path / "config.yaml").write_text("collection:\n  job_timeout: 11\nprocessing:\n  job_timeout: 12\n")
        await collection_scheduler.start()
        await processing_scheduler.start()
        try:
            job = await ended_job(
                collection_scheduler, await collection_scheduler.add_manual_job("collection", plain, value=1)
            )
            assert job.max_runtime == 11
        finally:
            await collection_scheduler.stop()
            await processing_scheduler.stop()
            collection_scheduler.close()
            processing_scheduler.close()

    run(main)


def test_settings_give_the_number_of_concurrent_jobs() -> None:
    """The settings give the number of concurrent jobs unless the scheduler is given one."""

    async def main() -> None:
        config = Settings(processing=ProcessingSettings(max_concurrent_jobs=3))
        scheduler = ProcessingScheduler(config=config)
        await scheduler.start()
        assert scheduler._executor is not None
        assert scheduler._executor.max_workers == 3
        scheduler.close()

    run(main)
