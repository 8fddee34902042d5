"""Schedulers with a store: their jobs outlive them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobStatus
from executor_adapter.config import CollectionSettings, Settings, StoreSettings
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler
from executor_adapter.store import open_store
from tests.contract.stores import store_jobs
from tests.waiting import PATIENCE


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


async def wait_for_end(scheduler: CollectionScheduler, job_id: str) -> Job:
    for _ in range(2000):
        job = await scheduler.get_job_status(job_id)
        assert job is not None
        if job.status.is_terminal:
            return job
        await asyncio.sleep(0.005)
    raise AssertionError("the job did not end")


def test_jobs_are_found_after_a_restart(url: str, tmp_path: Path) -> None:
    """After a restart, past jobs are listed, filtered and cleaned up, and those cut off run again."""

    async def main() -> None:
        first = CollectionScheduler(1, config=Settings(store=StoreSettings(url=url)))
        early = await first.add_manual_job("early", store_jobs.give, value=1)
        await first.start()
        await wait_for_end(first, early)
        never = str(tmp_path / "go")
        cut_off = [await first.add_manual_job("slow", store_jobs.wait_for_file, path=never) for _ in range(2)]
        live = await first.get_job_status(cut_off[0])
        assert live is not None
        assert live is await first.get_job_status(cut_off[0])
        await first.stop(timeout=0.1)
        assert [job.status for job in await first.get_all_jobs()] == ["completed", "pending", "pending"]
        first.close()
        (tmp_path / "go").touch()

        second = CollectionScheduler(1, config=Settings(), store=url)
        await second.start()
        for job_id in cut_off:
            assert (await wait_for_end(second, job_id)).status is JobStatus.COMPLETED
        assert [job.job_id for job in await second.get_all_jobs()] == [early, *cut_off]
        assert [job.job_id for job in await second.job_queue.list_jobs(job_type="slow", offset=1)] == [cut_off[1]]
        with pytest.raises(InvalidJobError, match="known already"):
            await second.job_queue.add_job(Job(function=store_jobs.give, args=(1,), job_id=early))
        assert await second.cleanup_old_jobs(max_age_hours=1) == 0
        assert await second.cleanup_old_jobs(max_age_hours=0) == 3
        assert await second.get_all_jobs() == []
        second.close()

    run(main)


def test_a_job_is_in_the_store_when_it_has_been_added(url: str, tmp_path: Path) -> None:
    """When add_manual_job returns, another scheduler finds the job in the store."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings(), store=url)
        other = CollectionScheduler(1, config=Settings(), store=url)
        await scheduler.start()
        await other.start()
        path = str(tmp_path / "go")
        job_id = await scheduler.add_manual_job("slow", store_jobs.wait_for_file, path=path)
        seen = await other.get_job_status(job_id)
        assert seen is not None
        assert seen.kwargs == {"path": path}
        (tmp_path / "go").touch()
        scheduler.close()
        other.close()

    run(main)


def test_a_job_is_retried_with_changes_after_a_restart(url: str) -> None:
    """`retry_job` makes a new job from a stored one, with changed fields."""
    config = Settings(collection=CollectionSettings(retry_attempts=0))

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=config, store=url)
        await scheduler.start()
        failed = await scheduler.add_manual_job("collection", store_jobs.fail, tool_name="radar", code=7)
        await scheduler.stop()
        scheduler.close()

        scheduler = CollectionScheduler(1, config=config, store=url)
        await scheduler.start()
        before = await wait_for_end(scheduler, failed)
        with pytest.raises(InvalidJobError, match="no job"):
            await scheduler.retry_job("unknown")
        retried = await scheduler.retry_job(failed, max_runtime=7200, kwargs={"code": 8}, retry_attempts=0)
        after = await wait_for_end(scheduler, retried)
        assert (after.max_runtime, after.tool_name, after.error_message) == (7200, "radar", "LookupError: on purpose 8")
        assert after.metadata["retry_of"] == before.job_id == failed
        scheduler.close()

    run(main)


def test_jobs_added_after_a_stop_are_listed_after_the_stored_ones(url: str) -> None:
    """Jobs added to a stopped scheduler are listed after the stored ones, on every page."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings(), store=url)
        await scheduler.start()
        ids = [await scheduler.add_manual_job("early", store_jobs.give, value=1) for _ in range(2)]
        for job_id in ids:
            await wait_for_end(scheduler, job_id)
        await scheduler.stop()
        ids += [await scheduler.add_manual_job("late", store_jobs.give, value=1) for _ in range(2)]
        assert [job.job_id for job in await scheduler.get_all_jobs()] == ids
        for offset, limit in ((0, 1), (1, 2), (2, 5), (3, 1), (0, None)):
            page = await scheduler.job_queue.list_jobs(offset=offset, limit=limit)
            assert [job.job_id for job in page] == ids[offset:][:limit]
        assert [job.job_id for job in await scheduler.job_queue.list_jobs(job_type="late")] == ids[2:]
        await scheduler.start()
        for job_id in ids:
            await wait_for_end(scheduler, job_id)
        assert [job.job_id for job in await scheduler.get_all_jobs()] == ids
        scheduler.close()

    run(main)


def test_an_added_job_with_a_recovered_duplicate_leads_to_that(url: str, tmp_path: Path) -> None:
    """The id of an added job leads to the recovered job that has the same dedupe_key."""

    async def main() -> None:
        def job() -> Job:
            path = str(tmp_path / "go")
            return Job(function=store_jobs.wait_for_file, kwargs={"path": path}, dedupe_key="one")

        first = CollectionScheduler(1, config=Settings(), store=url)
        await first.start()
        cut_off = await first.job_queue.add_job(job())
        await first.stop(timeout=0)
        first.close()
        second = CollectionScheduler(1, config=Settings(), store=url)
        added = await second.job_queue.add_job(job())
        await second.start()
        known = await second.get_job_status(added)
        assert known is not None
        assert known.job_id == cut_off
        (tmp_path / "go").touch()
        assert (await wait_for_end(second, added)).status is JobStatus.COMPLETED
        assert [job.job_id for job in await second.get_all_jobs()] == [cut_off]
        second.close()

    run(main)


@pytest.mark.parametrize("by_another", [False, True])
def test_a_quarantined_job_can_be_retried_after_its_release(url: str, by_another: bool) -> None:
    """`retry_job` refuses a quarantined job until this or another process releases it."""

    async def main() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(), store=url)
        await scheduler.start()
        deadly = Job(function=store_jobs.die, job_id="deadly", pool="process", retry_attempts=3, retry_delay=0)
        await scheduler.job_queue.add_job(deadly)
        while not deadly.status.is_terminal:
            await asyncio.sleep(0.005)
        scheduler.close()
        await scheduler.start()
        with pytest.raises(InvalidJobError, match="quarantined"):
            await scheduler.retry_job("deadly")
        await scheduler.stop()
        with pytest.raises(InvalidJobError, match="quarantined"):
            await scheduler.retry_job("deadly")
        await scheduler.start()
        if by_another:
            with contextlib.closing(open_store(url)) as other:
                assert other.release("deadly")
        else:
            assert await scheduler.release("deadly")
        retried = await scheduler.retry_job("deadly", function=store_jobs.give, args=(1,))
        job = await scheduler.get_job_status(retried)
        assert job is not None
        while not job.status.is_terminal:
            await asyncio.sleep(0.005)
        assert job.status is JobStatus.COMPLETED
        scheduler.close()

    run(main)
