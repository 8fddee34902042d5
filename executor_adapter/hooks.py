"""Attempts that pass through a subclass's `execute_job`: driven from an event loop of the executor's own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from executor_adapter.driver import JobDriver
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.futures import JobFuture
from executor_adapter.job import Job
from executor_adapter.limits import StopReason

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor
    from executor_adapter.supervisor import Supervisor


class HookedExecution:
    """Drives each job through an executor's `execute_job`: acquire, execute, then complete, retry or fail."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._drivers: dict[Job, JobDriver] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        supervisor.on_closed.append(self._close)

    def submit(self, job: Job, executor: JobExecutor, **how: Any) -> JobFuture:
        """Take a job in as `Supervisor.admit` does."""
        driver = JobDriver(job, self._supervisor, applies_max_runtime=False)
        future = self._supervisor.admit(job, driver=driver, **how)
        if future.job is job:  # else a live job with the same dedupe_key
            self._drivers[job] = driver
            self._running_loop().call_soon_threadsafe(self._begin, driver, executor)
        return future

    async def attempt(self, job: Job) -> Any:
        """One attempt in the job's pool; cancelling it returns when the work is dead or written off."""
        driver = self._drivers.get(job)
        if driver is None:
            raise JobCancelledError(f"job {job.job_id} is not running: submit it")
        running = asyncio.wrap_future(driver.attempt())
        running.add_done_callback(lambda over: over.exception())  # looked at: asyncio logs it where nobody does
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            driver.stop_attempt(StopReason.LIMIT)
            await asyncio.wait([running])
            raise

    def _close(self) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None

    def _begin(self, driver: JobDriver, executor: JobExecutor) -> None:
        task = asyncio.get_running_loop().create_task(self._drive(driver, executor))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drive(self, driver: JobDriver, executor: JobExecutor) -> None:
        try:
            while await self._attempt_once(driver, executor):
                pass
        except BaseException as error:
            driver.fail(error)
        finally:
            del self._drivers[driver.job]

    async def _attempt_once(self, driver: JobDriver, executor: JobExecutor) -> bool:
        """Whether another attempt is to follow."""
        await asyncio.wrap_future(driver.acquire())
        try:
            driver.complete(await executor.execute_job(driver.job))
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
                threading.Thread(target=_run, args=(self._loop,), name="executor-hooks", daemon=True).start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()
