"""BaseScheduler: the queue of a scheduler, its start and stop, and questions about its jobs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from executor_adapter.config import Settings, Stage, StageSettings, load_config
from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.executor import JobExecutor
from executor_adapter.job import Job, NearLimit, Observer, ToolLimit, check_count, rerun
from executor_adapter.pools.selection import check_job
from executor_adapter.scheduler.binding import bind, check_own_arguments
from executor_adapter.scheduler.job_queue import JobQueue
from executor_adapter.scheduler.mirroring import SchedulerMirror, mirror_for
from executor_adapter.store import JobStore, open_store
from executor_adapter.supervision.outcome import DEFAULT_WINDOW_SECONDS, ExecutorStats

STOP_TIMEOUT = 30.0
"""Seconds that running jobs get to end when their scheduler stops."""


class BaseScheduler:
    """A named queue of jobs, and the executor that runs them between `start` and `stop`.

    `config`: Settings; default: `load_config()`, read at `start`. `store`: where jobs are remembered, a JobStore or its
    URL; default: `store.url` of the settings, or else the memory of this process. `observers`: as those of JobExecutor;
    if one of them is a PrefectMirror, the setting `prefect.mirror` is ignored. `tool_limits`: by tool name, how many of
    its jobs run at once and how many start per second. `progress`: a progress bar on stderr between `start` and `stop`.
    """

    section: ClassVar[Stage]
    bound_metadata: ClassVar[tuple[str, ...]]
    """Keys of a job's metadata that its function gets as arguments of the same name, if it accepts them."""

    def __init__(
        self,
        max_concurrent_jobs: int | None = None,
        *,
        config: Settings | None = None,
        store: JobStore | str | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        observers: Iterable[Observer] = (),
        progress: bool = False,
    ) -> None:
        check_count("max_concurrent_jobs", max_concurrent_jobs, "lets no job start", or_none=", or None")
        self.job_queue = JobQueue(self._accept)
        self._max_concurrent_jobs = max_concurrent_jobs
        self._config = config
        self._given_store = store
        self._store: JobStore | None = None
        self._tool_limits = tool_limits
        self._observers = tuple(observers)
        self._executor: JobExecutor | None = None
        self._progress = progress
        self._bar = contextlib.ExitStack()
        self._mirror: SchedulerMirror | None = None
        self._waiting: list[Job] = []
        self._quarantined: dict[str, Job] = {}
        """The jobs that the last executor held in quarantine; the next executor takes them over."""
        self._opening = threading.Lock()  # Held while the store is opened, which may take long.
        self._lock = threading.RLock()  # Re-entrant: a signal handler may close it while its thread holds the lock.

    async def start(self) -> None:
        """Read the configuration, then run the jobs that were added and those that a dead host left in the store.

        Does nothing if the scheduler runs already.

        Raises:
            ConfigurationError: The message names key and value.
            StoreUnavailableError: The store cannot be used now.
            InvalidJobError, JobSerializationError: A job that was added before can never run, or cannot be stored; it
                is discarded, and all others run. With any other error all that were not submitted wait for a start.
        """
        if self._executor is not None:
            return
        config = self.config
        await asyncio.to_thread(self._open_store, config)
        mirror = await asyncio.to_thread(mirror_for, config.prefect.mirror, self._observers)
        executor, waiting = self._begin(config, mirror)
        try:
            await executor.start()
            refused = self._submit_all(waiting, executor)
        except BaseException:
            self._waiting[:0] = waiting
            self.close()
            raise
        if refused is not None:
            raise refused

    def _begin(self, config: Settings, mirror: SchedulerMirror | None) -> tuple[JobExecutor, deque[Job]]:
        """Make the executor, and take the jobs that have waited for it."""
        with self._lock:
            if self._executor is None:
                self._executor, self._mirror = self._make_executor(config), mirror
                if mirror is not None:
                    mirror.attach(self._executor)
            waiting, self._waiting = deque(self._waiting), []
            return self._executor, waiting

    def _make_executor(self, config: Settings) -> JobExecutor:
        section: StageSettings = getattr(config, self.section)
        executor = JobExecutor(
            section.max_concurrent_jobs if self._max_concurrent_jobs is None else self._max_concurrent_jobs,
            config=config.for_stage(self.section),
            tool_limits=self._tool_limits,
            observers=self._observers,
            store=self._store,
            queue=self.section,
            requeue_on_shutdown=True,
        )
        executor.quarantine(self._quarantined.values())
        if self._progress:
            self._bar.enter_context(_bar_of(executor, self.section))
        self.job_queue.use_history(executor.history())
        return executor

    def _open_store(self, config: Settings) -> None:
        wanted = self._given_store or config.store.url
        with self._opening:
            if self._store is None and wanted is not None:
                self._store = wanted if isinstance(wanted, JobStore) else open_store(wanted)

    def _submit_all(self, jobs: deque[Job], executor: JobExecutor) -> Exception | None:
        """Submit the jobs, and take each out of `jobs`; return why the last of those that can never run was refused."""
        refused: Exception | None = None
        while jobs:
            job = jobs[0]
            try:
                if (taken := self._submit(job, executor)) is not job:
                    self.job_queue.redirect(job, taken)
            except (InvalidJobError, JobSerializationError) as error:
                self.job_queue.forget(job)
                refused = error
            jobs.popleft()
        return refused

    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Cancel waiting jobs and let running ones end; cancel those too after `timeout` seconds (None: never).

        With a store that outlives the program, the jobs stay there for the next start instead of being cancelled.
        Where jobs are mirrored, a Prefect server that is behind or away gets 14 s more; what it has not recorded by
        then is kept for the next start.
        """
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown, cancel_futures=True, timeout=timeout)
            self._ended(executor)

    def close(self) -> None:
        """End running jobs at once, and release all workers and the store.

        Does no harm when the scheduler is stopped or closed already. A Prefect server gets 4 s, for final states only.
        Jobs that wait for a start, or are added from now on, wait for the next start.
        """
        with self._lock:
            executor, self._executor = self._executor, None
            store, self._store = self._store, None
            mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.hurry()
        if executor is not None:
            executor.shutdown(cancel_futures=True, timeout=0)
            self._ended(executor)
        if store is not None and store is not self._given_store:
            store.close()

    def _ended(self, executor: JobExecutor) -> None:
        self._bar.close()
        self._quarantined = {job.job_id: job for job in executor.quarantined()}
        self.job_queue.use_history(executor.history())

    async def retry_job(self, job_id: str, **changes: Any) -> str:
        """Queue a new job like a finished one, with `changes` to fields of Job, and return the new job's id.

        Changes are for example a longer `max_runtime` or other `kwargs`. The new job's metadata holds the old job's id
        as `retry_of`.

        Raises:
            InvalidJobError: The job is unknown, not finished, or quarantined and not released.
        """
        job = await self.get_job_status(job_id)
        if job is None:
            raise InvalidJobError(f"no job with the id {job_id!r} is known")
        if await self._is_quarantined(job_id):
            raise InvalidJobError(f"job {job_id} is quarantined: release({job_id!r}) first")
        return await self.job_queue.add_job(rerun(job, **changes))

    async def release(self, job_id: str) -> bool:
        """End a job's quarantine, so that `retry_job` accepts it. Return False where no quarantined job has this id."""
        executor, store = self._executor, self._store
        if executor is not None:
            return await asyncio.to_thread(executor.release, job_id)
        known = self._quarantined.pop(job_id, None) is not None
        return known if store is None else await asyncio.to_thread(store.release, job_id)

    async def _is_quarantined(self, job_id: str) -> bool:
        if (stored := await self.job_queue.is_quarantined(job_id)) is not None:
            return stored
        executor = self._executor
        return job_id in (self._quarantined if executor is None else executor.stats().quarantined)

    async def get_job_status(self, job_id: str) -> Job | None:
        """Return the job itself, whose fields change as it runs; None where it is unknown."""
        return await self.job_queue.get_job(job_id)

    async def get_all_jobs(self) -> list[Job]:
        """Return all jobs that are known, in the order in which they were added."""
        return await self.job_queue.list_jobs()

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Delete jobs that finished more than `max_age_hours` ago, and return how many.

        Raises:
            ValueError: `max_age_hours` is negative or not finite.
        """
        return await self.job_queue.cleanup_old_jobs(max_age_hours)

    @property
    def config(self) -> Settings:
        """The settings in force; before `start`, those that it would read.

        Raises:
            ConfigurationError: The message names key and value.
        """
        executor = self._executor
        return (self._config or load_config()) if executor is None else executor.config

    def running(self) -> list[Job]:
        """Return the jobs that have a running attempt."""
        return [] if self._executor is None else self._executor.running()

    def stats(self, *, window: float = DEFAULT_WINDOW_SECONDS) -> ExecutorStats | None:
        """Return the executor's counts and figures; None while the scheduler is not started."""
        return None if self._executor is None else self._executor.stats(window=window)

    def near_limits(self) -> list[NearLimit]:
        """Return the limits that live jobs are near to, as JobExecutor does."""
        return [] if self._executor is None else self._executor.near_limits()

    async def _add(self, job: Job, own: dict[str, Any]) -> str:
        check_own_arguments(job.function, own)
        job.kwargs.update(own)
        return await self.job_queue.add_job(job)

    def _accept(self, job: Job) -> Job:
        bind(job, self.bound_metadata)
        with self._lock:
            if (executor := self._executor) is not None:
                return self._submit(job, executor)
            for other in () if job.dedupe_key is None else self._waiting:
                if other.dedupe_key == job.dedupe_key:
                    return other
            self._check(job)
            self._waiting.append(job)
            return job

    def _submit(self, job: Job, executor: JobExecutor) -> Job:
        executor.fill_in_defaults(job)  # A pool that the settings name wins over the scheduler's choice.
        self._choose_pool(job)
        future = executor.submit(job)
        future.note_read()  # Its status says how it ended.
        return future.job

    def _check(self, job: Job) -> None:
        """Refuse a job that could not run under any settings; they are read at `start`."""
        probe = job.model_copy()
        self._choose_pool(probe)
        check_job(probe)

    def _choose_pool(self, job: Job) -> None:
        """Set the pool where neither the job nor the settings name one.

        Here it stays "auto": a coroutine or a thread, since collection mostly waits for others.
        """


def _bar_of(executor: JobExecutor, title: str) -> AbstractContextManager[Any]:
    """Return the bar of all jobs that the executor has got so far: how many are done, failed, running and waiting."""
    from executor_adapter.monitoring import ProgressBar, ProgressCounts  # It needs rich, which few programs load.

    def read() -> ProgressCounts:
        stats = executor.stats(window=0.0)
        failed = stats.jobs_failed + stats.jobs_cancelled
        done = stats.jobs_completed + failed
        waiting = stats.jobs_pending + stats.jobs_retrying
        note = f"{stats.jobs_running} running, {waiting} waiting" if stats.jobs_running or waiting else ""
        return ProgressCounts(done=done, failed=failed, total=done + stats.jobs_running + waiting, note=note)

    return ProgressBar(title, read)
