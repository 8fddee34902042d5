"""Attempts that pass through a subclass's `execute_job`: driven from an event loop of the executor's own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executor_adapter.driver import JobDriver
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.futures import JobFuture
from executor_adapter.job import Job
from executor_adapter.limits import StopReason

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor


class HookedExecution:
    """Drives each job of `executor` through its `execute_job`: acquire, execute, then complete, retry or fail."""

    def __init__(self, executor: JobExecutor) -> None:
        self._executor = executor
        self._drivers: dict[Job, JobDriver] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, job: Job, timeout: float | None) -> JobFuture:
        driver = JobDriver(job, self._executor._supervisor, applies_max_runtime=False)
        future = self._executor._supervisor.admit(job, driver=driver, timeout=timeout)
        if future.job is job:  # else a live job with the same dedupe_key
            self._drivers[job] = driver
            loop = self._running_loop()
            loop.call_soon_threadsafe(self._begin, job)
        return future

    async def attempt(self, job: Job) -> Any:
        """One attempt in the job's pool; cancelling it returns when the work is dead or written off."""
        driver = self._drivers.get(job)
        if driver is None:
            raise JobCancelledError(f"job {job.job_id} is not running: submit it")
        running = driver.attempt()
        try:
            return await asyncio.shield(asyncio.wrap_future(running))
        except asyncio.CancelledError:
            driver.stop_attempt(StopReason.LIMIT)
            await _ended(running)
            raise

    def close(self) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _begin(self, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._drive(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, job: Job) -> None:
        driver = self._drivers[job]
        try:
            while await self._attempt_once(driver):
                pass
        except BaseException as error:
            driver.fail(error)
        finally:
            del self._drivers[job]

    async def _attempt_once(self, driver: JobDriver) -> bool:
        """Whether another attempt is to follow."""
        await asyncio.wrap_future(driver.acquire())
        try:
            driver.complete(await self._executor.execute_job(driver.job))
            return False
        except Exception as error:
            decision = driver.decide(error)
            if not decision.retry:
                raise
            await asyncio.wrap_future(driver.retry(decision))
            return True

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="executor-hooks", daemon=True).start()
            return self._loop


async def _ended(future: Future[Any]) -> None:
    """Wait until it is done, however it ends."""
    await asyncio.wait([asyncio.wrap_future(future)])
