"""Tests that every code block of the guide runs as it is written and does what the text around it says.

`guide_code.AS_READ_HERE` lists what is changed in the blocks. Each test passes in the names that its block leaves
open, and skips over the hours that it sleeps.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings, load_config
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from tests.api_server import as_json, serving
from tests.examples.guide_code import LeapingLoop, read_blocks, run, until
from tests.servers import free_port
from tests.waiting import PATIENCE

BLOCKS = read_blocks()
QUICK = Settings.model_validate({"collection": {"retry_delay": 0.01}, "processing": {"retry_delay": 0.01}})
"""The default settings, but with a retry delay that does not slow the tests."""

_tested: set[str] = set()


def block(heading: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives the test the block under this heading as `code`."""
    _tested.add(heading)
    return pytest.mark.parametrize("code", [pytest.param(BLOCKS[heading], id=heading)])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a directory without a config.yaml, so that the guide's defaults apply."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXECUTOR_ADAPTER_CONFIG", raising=False)


@asynccontextmanager
async def collecting(max_concurrent_jobs: int | None = None) -> AsyncIterator[CollectionScheduler]:
    scheduler = CollectionScheduler(max_concurrent_jobs, config=QUICK)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


@asynccontextmanager
async def processing() -> AsyncIterator[ProcessingScheduler]:
    scheduler = ProcessingScheduler(config=QUICK)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


async def ended(scheduler: CollectionScheduler | ProcessingScheduler, job_id: str) -> Job:
    """Wait until the job has ended and return it."""
    job = await scheduler.get_job_status(job_id)
    assert job is not None
    await until(lambda: job.status.is_terminal)
    return job


async def added(scheduler: CollectionScheduler, function: Callable[..., Any], **fields: Any) -> Job:
    """Add a job, wait until it has ended and return it."""
    job_id = await scheduler.job_queue.add_job(Job(function=function, **fields))
    return await ended(scheduler, job_id)


def fail(error_code: str | None = None) -> None:
    raise DataCollectionException("the source is broken", error_code=error_code)


def collect_cequence_data(tool_name: str, collection_type: str) -> dict[str, Any]:
    return {"records_collected": 3, "from": tool_name, "how": collection_type}


def process_cequence_data(tool_name: str, processing_stage: str, data: list[int]) -> dict[str, Any]:
    return {"records_processed": len(data), "from": tool_name, "stage": processing_stage}


class MovedDatetime(datetime):
    """A `datetime` class whose `now` is later by `moved`."""

    moved = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> MovedDatetime:
        later = datetime.now(tz) + cls.moved
        return cls.combine(later.date(), later.timetz())


# --- configuration ---


@block("Configuration / 1. Basic Configuration")
def test_schedulers_are_made_with_their_concurrency(code: Any) -> None:
    """`max_concurrent_jobs` is how many of a scheduler's jobs run at the same time."""
    names = code.run(CollectionScheduler=CollectionScheduler, ProcessingScheduler=ProcessingScheduler)
    for name, most in (("collection_scheduler", 4), ("processing_scheduler", 2)):
        assert _most_at_once(names[name]) == most


def _most_at_once(scheduler: CollectionScheduler | ProcessingScheduler) -> int:
    running: list[int] = []
    most = 0

    async def overlap() -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await asyncio.sleep(0.02)
        running.pop()

    async def main(loop: LeapingLoop) -> None:
        await scheduler.start()
        try:
            ids = [await scheduler.job_queue.add_job(Job(function=overlap)) for _ in range(12)]
            for job_id in ids:
                assert (await ended(scheduler, job_id)).status == "completed"
        finally:
            scheduler.close()

    run(main)
    return most


@block("Configuration / 2. Job-Level Configuration")
def test_a_job_is_configured(code: Any) -> None:
    """A job's max_runtime and retry settings are its own."""
    job = code.run(collect_data_function=collect_cequence_data)["job"]
    assert (job.job_id, job.job_type, job.tool_name) == ("unique_job_id", "collection", "cequence")
    assert (job.max_runtime, job.policy.retry_attempts, job.policy.retry_delay) == (3600, 3, 60.0)
    assert job.status == "pending"


@block("Configuration / 3. Configuration File Settings")
def test_the_configuration_file_is_read(code: Any, tmp_path: Path) -> None:
    """Each value of the file takes effect, also in the jobs of a scheduler."""
    file = tmp_path / "config.yaml"
    file.write_text(code.text)
    settings = load_config()
    assert settings.processing.model_dump() == {
        "max_concurrent_jobs": 2, "job_timeout": 3600, "retry_attempts": 3, "retry_delay": 60.0, "batch_size": 1000,
    }  # fmt: skip
    assert settings.collection.model_dump() == {
        "max_concurrent_jobs": 2, "job_timeout": 3600, "retry_attempts": 3, "retry_delay": 60.0,
        "rate_limit_buffer": 0.1,
    }  # fmt: skip

    file.write_text(code.text.replace("job_timeout: 3600", "job_timeout: 1800"))

    async def main(loop: LeapingLoop) -> None:
        scheduler = CollectionScheduler()
        await scheduler.start()
        job_id = await scheduler.add_manual_job("collection", time.time)
        assert (await ended(scheduler, job_id)).max_runtime == 1800
        scheduler.close()

    run(main)


# --- usage ---


@block("Usage Examples / 1. Starting and Stopping Executors")
def test_schedulers_start_run_for_an_hour_and_stop(code: Any) -> None:
    """`start` starts the executors, `stop` stops them, `close` releases what they hold."""

    async def main(loop: LeapingLoop) -> None:
        names = code.run()
        collection, processor = names["collection_scheduler"], names["processing_scheduler"]
        managing = asyncio.create_task(names["manage_executors"]())
        job_ids = {
            collection: await collection.add_manual_job("collection", collect_cequence_data, tool_name="cequence"),
            processor: await processor.add_processing_job(process_cequence_data, "cequence", "validation", [1, 2]),
        }
        for scheduler, job_id in job_ids.items():
            assert (await ended(scheduler, job_id)).status == "completed"
        loop.leap(3590)
        await asyncio.sleep(0)
        assert not managing.done()
        loop.leap(10)
        await managing
        assert collection.stats() is None
        assert processor.stats() is None

    run(main)


@block("Usage Examples / 2. Adding Manual Jobs")
def test_jobs_are_added_by_hand(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each function gets the tool's name and its collection type or processing stage."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection, processing() as processor:
            names = code.run(
                collection_scheduler=collection,
                processing_scheduler=processor,
                collect_cequence_data=collect_cequence_data,
                process_cequence_data=process_cequence_data,
                sample_data=[1, 2, 3, 4],
            )
            collected = await ended(collection, await names["add_collection_job"]())
            processed = await ended(processor, await names["add_processing_job"]())
            assert (collected.status, collected.records_processed) == ("completed", 3)
            assert collected.kwargs == {"tool_name": "cequence", "collection_type": "manual"}
            assert (processed.status, processed.records_processed) == ("completed", 4)
            assert processed.metadata == {"processing_stage": "validation"}
            assert capsys.readouterr().out == (
                f"Job added with ID: {collected.job_id}\nProcessing job added with ID: {processed.job_id}\n"
            )

    run(main)


@block("Usage Examples / 3. Monitoring Job Status")
def test_the_status_of_jobs_is_shown(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The status of one job is shown by its id, and the status of all jobs in a list."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            monitor = code.run(collection_scheduler=collection)["monitor_jobs"]
            await monitor()
            assert capsys.readouterr().out == ""  # no such job
            kwargs = {"tool_name": "cequence", "collection_type": "full"}
            job = await added(
                collection, collect_cequence_data, job_id="job_id_123", job_type="collection", kwargs=kwargs
            )
            await monitor()
            assert capsys.readouterr().out.splitlines() == [
                "Job job_id_123: completed",
                f"Duration: {job.duration}s",
                "Records processed: 3",
                "job_id_123: completed (collection)",
            ]

    run(main)


@block("Usage Examples / 4. Custom Job Function")
def test_a_custom_function_is_retried_and_its_records_are_counted(code: Any) -> None:
    """An error of the function is retried, and `records_collected` is counted."""
    calls: list[str] = []

    async def collect_data_from_tool(tool_name: str) -> list[int]:
        calls.append(tool_name)
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return [1, 2, 3, 4, 5]

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            names = await code.run_async(collection_scheduler=collection, collect_data_from_tool=collect_data_from_tool)
            job = await ended(collection, names["job_id"])
            assert (job.status, job.attempt, job.records_processed) == ("completed", 3, 5)
            assert job.kwargs["custom_param"] == "value"
            assert calls == ["custom_tool"] * 3

    run(main)


# --- monitoring and management ---


@block("Monitoring and Management / 1. Job Status Tracking")
def test_a_job_is_tracked_to_its_end(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A job is polled every ten seconds until it ends; an unknown id is reported."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            track = code.run(collection_scheduler=collection, asyncio=asyncio)["track_job_progress"]
            go_on = asyncio.Event()

            async def work() -> None:
                while not go_on.is_set():
                    await asyncio.sleep(0.005)
                fail("DATA_ERROR")

            job = Job(function=work, job_id="tracked")
            await collection.job_queue.add_job(job)
            await until(lambda: job.status is JobStatus.RUNNING)
            tracking = asyncio.create_task(track("tracked"))
            for _ in range(2):
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                loop.leap(10)
            await asyncio.sleep(0.01)
            go_on.set()
            await until(lambda: job.status.is_terminal)
            loop.leap(10)
            await tracking
            output = capsys.readouterr().out.splitlines()
            assert output[:-3].count("Job tracked: running") == len(output) - 3 >= 2
            assert output[-3:] == ["Job tracked: failed", "Final status: failed", "Error: the source is broken"]
            await track("nobody")
            assert capsys.readouterr().out == "Job nobody not found\n"

    run(main)


@block("Monitoring and Management / 2. Performance Monitoring")
def test_the_performance_is_computed_from_all_jobs(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts by status, the success rate and the mean duration cover all jobs."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            monitor = code.run(collection_scheduler=collection)["monitor_executor_performance"]
            await monitor()
            assert "Success rate: 0.00%" in capsys.readouterr().out
            jobs = [await added(collection, time.sleep, args=(0.01,)) for _ in range(3)]
            jobs.append(await added(collection, fail, args=("DATA_ERROR",)))
            await monitor()
            average = sum(job.duration or 0.0 for job in jobs) / 4
            assert capsys.readouterr().out.splitlines() == [
                "Total jobs: 4",
                "Completed: 3",
                "Failed: 1",
                "Running: 0",
                "Success rate: 75.00%",
                f"Average duration: {average:.2f}s",
            ]

    run(main)


@block("Monitoring and Management / 3. Error Handling and Recovery")
def test_failed_jobs_are_recovered_by_error_code(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each error code gets the recovery that the guide shows for it."""
    settings = {"token": "wrong"}
    answers = [503, 200]

    def slow(seconds: float) -> str:
        time.sleep(seconds)
        return "in time"

    def ask() -> None:
        if answers.pop(0) != 200:
            fail("API_ERROR")

    def log_in() -> None:
        if settings["token"] != "right":
            fail("CONFIGURATION_ERROR")

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:

            async def retry_with_backoff(job: Job) -> None:
                again = Job(function=job.function, job_id="asked_again", retry_delay=0.01)
                await collection.job_queue.add_job(again)

            async def fix_configuration_and_retry(job: Job) -> None:
                settings["token"] = "right"
                await collection.job_queue.add_job(Job(function=job.function, job_id="logged_in"))

            once = {"retry_attempts": 0, "job_type": "collection"}
            late = await added(collection, slow, job_id="late", kwargs={"seconds": 0.6}, max_runtime=0.5, **once)
            await added(collection, ask, job_id="asked", **once)
            await added(collection, log_in, job_id="refused", **once)
            names = code.run(
                collection_scheduler=collection,
                Job=Job,
                retry_with_backoff=retry_with_backoff,
                fix_configuration_and_retry=fix_configuration_and_retry,
            )
            await names["handle_job_failures"]()
            output = capsys.readouterr().out.splitlines()
            assert output[:3] == ["Failed job: late", f"Error: {late.error_message}", "Error code: TIMEOUT_ERROR"]
            assert [line for line in output[3:] if "code" in line] == [
                "Error code: API_ERROR", "Error code: CONFIGURATION_ERROR",
            ]  # fmt: skip
            for job_id in ("late_retry", "asked_again", "logged_in"):
                assert (await ended(collection, job_id)).status == "completed", job_id
            again = await collection.get_job_status("late_retry")
            assert again is not None
            assert (again.max_runtime, again.retry_attempts, again.kwargs) == (1.0, 1, late.kwargs)

    run(main)


# --- best practices ---


@block("Best Practices / 1. Resource Management")
def test_cleaning_up_stops_and_closes_both_schedulers(code: Any) -> None:
    """Cleaning up stops both schedulers, and a second clean-up has no effect."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection, processing() as processor:
            names = code.run(collection_scheduler=collection, processing_scheduler=processor)
            done = await added(collection, time.time)
            await names["cleanup_resources"]()
            assert (collection.stats(), processor.stats()) == (None, None)
            assert await collection.get_job_status(done.job_id) is not None
            await names["cleanup_resources"]()

    run(main)


@block("Best Practices / 2. Job Design")
def test_an_idempotent_job_collects_once(code: Any) -> None:
    """A second run with the same collection time finds the data and collects nothing."""
    stored: set[tuple[str, str]] = set()

    async def data_already_collected(tool_name: str, collection_time: str) -> bool:
        return (tool_name, collection_time) in stored

    async def save_collection_metadata(tool_name: str, collection_time: str) -> None:
        stored.add((tool_name, collection_time))

    async def collect_data(tool_name: str) -> list[int]:
        return [1, 2, 3]

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            function = code.run(
                data_already_collected=data_already_collected,
                save_collection_metadata=save_collection_metadata,
                collect_data=collect_data,
            )["idempotent_collection_job"]
            collected = []
            for _ in range(2):
                job_id = await collection.add_manual_job(
                    "collection", function, tool_name="cequence", collection_time="2013-01-01"
                )
                collected.append((await ended(collection, job_id)).records_processed)
            assert collected == [3, 0]
            assert stored == {("cequence", "2013-01-01")}

    run(main)


@block("Best Practices / 3. Error Handling")
def test_network_errors_are_retried_and_data_errors_are_not(code: Any) -> None:
    """An unreachable server is retried, and a response that is not JSON is not."""
    away = free_port()

    async def main(loop: LeapingLoop) -> None:
        with serving(lambda path, body: as_json([1, 2]) if path == "/rows" else (200, {}, b"<html>")) as (url, asked):
            port = int(url.rpartition(":")[2])
            ports = iter([away, away, port])

            async def collect_data(tool_name: str) -> list[int]:
                return _get(next(ports) if tool_name == "/rows" else port, tool_name)

            async with collecting() as collection:
                function = code.run(collect_data=collect_data)["robust_collection_job"]
                over_network, broken = [
                    await ended(collection, await collection.add_manual_job("collection", function, tool_name=path))
                    for path in ("/rows", "/broken")
                ]
                assert [attempt.error_code for attempt in over_network.attempts] == ["NETWORK_ERROR"] * 2 + [None]
                assert over_network.records_processed == 2
                assert (broken.status, broken.error_code, broken.attempt) == ("failed", "DATA_ERROR", 1)
                assert str(broken.error_message).startswith("Invalid data for /broken: ")
                assert [path for path, _ in asked] == ["/rows", "/broken"]

    run(main)


def _get(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@block("Best Practices / 4. Monitoring and Alerting")
def test_stuck_jobs_and_high_failure_rates_are_logged(code: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Jobs that run over an hour, high failure rates and its own errors are logged every five minutes."""

    class Now(MovedDatetime):
        moved = timedelta()

    go_on = asyncio.Event()

    async def wait_long() -> None:
        while not go_on.is_set():
            await asyncio.sleep(0.005)

    async def look_again(loop: LeapingLoop) -> list[str]:
        caplog.clear()
        loop.leap(300)
        for _ in range(5):
            await asyncio.sleep(0.001)
        return caplog.messages

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            logger = logging.getLogger("guide")
            names = code.run(collection_scheduler=collection, datetime=Now, UTC=UTC, logger=logger)
            await added(collection, time.time)
            stuck = Job(function=wait_long, job_id="stuck")
            await collection.job_queue.add_job(stuck)
            await until(lambda: stuck.status is JobStatus.RUNNING)
            await names["setup_job_monitoring"]()
            assert await look_again(loop) == []
            Now.moved = timedelta(hours=2)
            (output,) = await look_again(loop)
            assert output.startswith("Job stuck running for 72")
            Now.moved = timedelta()
            for _ in range(3):
                await added(collection, fail, args=("DATA_ERROR",))
            assert await look_again(loop) == ["High failure rate detected: 60.00%"]
            Now.moved = timedelta(days=10_000_000)
            (output,) = await look_again(loop)
            assert output.startswith("Monitoring error: ")
            Now.moved = timedelta(hours=2)
            assert len(await look_again(loop)) == 1
            go_on.set()
            await until(lambda: stuck.status.is_terminal)

    run(main)


# --- troubleshooting, and one's own executor ---


@block("Troubleshooting / Debug Commands")
def test_a_job_is_shown_and_old_jobs_are_deleted(code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All fields of a job are shown, and a clean-up keeps jobs that ended less than 24 hours ago."""

    async def main(loop: LeapingLoop) -> None:
        async with collecting() as collection:
            job = await added(collection, fail, job_id="broken", args=("DATA_ERROR",))
            names = await code.run_async(collection_scheduler=collection)
            await names["debug_job"]("broken")
            assert capsys.readouterr().out.splitlines() == [
                "Job ID: broken",
                "Type: job",
                "Status: failed",
                f"Started: {job.started_at}",
                f"Completed: {job.completed_at}",
                f"Duration: {job.duration}",
                "Records: None",
                "Error: the source is broken",
                "Error Code: DATA_ERROR",
            ]
            assert await collection.cleanup_old_jobs(max_age_hours=0) == 1
            await names["debug_job"]("broken")
            assert capsys.readouterr().out == ""

    run(main)


@block("Advanced Configuration / Custom JobExecutor")
def test_a_custom_executor_has_hooks_and_a_timeout_of_its_own(code: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Hooks run around each attempt, and `timeout_multiplier` times `max_runtime` is the timeout."""
    names = code.run(JobExecutor=JobExecutor, Job=Job, Any=Any, asyncio=asyncio, logger=logging.getLogger("guide"))
    caplog.set_level(logging.INFO, "guide")
    with names["CustomJobExecutor"](max_workers=2, custom_config={"timeout_multiplier": 0.0001}) as executor:
        assert executor.run(Job(function=sum, args=([1, 2],), job_id="sum")) == 3
        assert caplog.messages == ["Pre-execution hook for job sum", "Post-execution hook for job sum"]
        caplog.clear()
        late = Job(function=asyncio.sleep, args=(3600,), job_id="late", max_runtime=3600.0, retry_attempts=0)
        with pytest.raises(TimeoutError):
            executor.run(late)
        assert (late.status, late.error_code) == ("failed", "TIMEOUT_ERROR")
        assert late.duration is not None
        assert late.duration > 0.3
        assert caplog.messages == ["Pre-execution hook for job late", "Error hook for job late: "]


def test_every_block_has_its_test() -> None:
    """Every code block of the guide has a test."""
    assert _tested == set(BLOCKS)
    assert len(BLOCKS) == 16
