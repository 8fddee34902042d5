"""Schedulers for programs without Prefect: named queues of collection and processing jobs over a JobExecutor.

    from executor_adapter.scheduler import collection_scheduler

    await collection_scheduler.start()
    job_id = await collection_scheduler.add_manual_job("collection", collect, tool_name="cequence")

Jobs may be added before `start`, and after `stop` or `close`: they wait for the next start, and nothing else starts
them. A scheduler that was stopped or closed can be started again. Where a Prefect API is configured its jobs are task
runs there too, see `mirroring`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from executor_adapter.config import Settings, Stage, StageSettings, load_config
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.functions import is_coroutine_function, resolve
from executor_adapter.job.model import Job
from executor_adapter.job.rerun import rerun
from executor_adapter.job.transition import Observer
from executor_adapter.job.validation import check_count
from executor_adapter.scheduler.job_queue import JobQueue
from executor_adapter.scheduler.mirroring import SchedulerMirror, mirror_for
from executor_adapter.store import open_store
from executor_adapter.store.base import JobStore
from executor_adapter.supervision.intake import check_job
from executor_adapter.supervision.rate_limiter import ToolLimit
from executor_adapter.supervision.stats import WINDOW, ExecutorStats

__all__ = ["CollectionScheduler", "Job", "ProcessingScheduler", "collection_scheduler", "processing_scheduler"]

STOP_TIMEOUT = 30.0
"""Seconds that running jobs get to end when their scheduler stops."""


class _Scheduler:
    """What both schedulers share.

    `config` default: `load_config()`, read at `start`. `store`: where jobs are remembered, a JobStore or the URL of
    one; default: the settings' `store.url`, else the memory of this process. `observers`: as JobExecutor's; where one
    is a PrefectMirror, the settings' `prefect.mirror` does not count.
    `tool_limits`: by tool name, how many of its jobs run at once and how many start in a second.
    """

    section: ClassVar[Stage]
    bound_metadata: ClassVar[tuple[str, ...]]
    """Keys of a job's metadata that its function gets as arguments of the same name, if it takes them."""

    def __init__(
        self,
        max_concurrent_jobs: int | None = None,
        *,
        config: Settings | None = None,
        store: JobStore | str | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        if max_concurrent_jobs is not None:
            check_count("max_concurrent_jobs", max_concurrent_jobs, "lets no job start", or_none=", or None")
        self.job_queue = JobQueue(self._accept)
        self._max_concurrent_jobs = max_concurrent_jobs
        self._config = config
        self._given_store = store
        self._store: JobStore | None = None
        self._tool_limits = tool_limits
        self._observers = tuple(observers)
        self._executor: JobExecutor | None = None
        self._mirror: SchedulerMirror | None = None
        self._waiting: list[Job] = []
        self._quarantined: dict[str, Job] = {}
        """What the executor that was stopped held in quarantine; the next one does."""
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Read the configuration, run what a host that died has left in the store, and what was added; harmless when
        it runs already.

        Raises:
            ConfigurationError: naming key and value.
            StoreUnavailableError: the store cannot be used now.
            InvalidJobError: a job that was added before cannot be stored; it is forgotten, and all else runs.
        """
        if self._executor is not None:
            return
        config = self.config
        await self._open_store(config)
        mirror = await asyncio.to_thread(mirror_for, config.prefect.mirror, self._observers)
        executor, waiting = self._begin(config, mirror)
        try:
            await executor.start()
        except BaseException:
            self._waiting[:0] = waiting
            self.close()
            raise
        self._submit_all(waiting, executor)

    def _begin(self, config: Settings, mirror: SchedulerMirror | None) -> tuple[JobExecutor, list[Job]]:
        """The executor, and the jobs that have waited for it."""
        with self._lock:
            if self._executor is None:
                self._executor, self._mirror = self._make_executor(config), mirror
                if mirror is not None:
                    mirror.attach(self._executor)
            waiting, self._waiting = self._waiting, []
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
        self.job_queue.remember(executor.history())
        return executor

    async def _open_store(self, config: Settings) -> None:
        wanted = self._given_store or config.store.url
        if self._store is None and wanted is not None:
            self._store = wanted if isinstance(wanted, JobStore) else await asyncio.to_thread(open_store, wanted)

    def _submit_all(self, jobs: list[Job], executor: JobExecutor) -> None:
        refused: InvalidJobError | None = None
        for job in jobs:
            try:
                taken = self._submit(job, executor)
            except InvalidJobError as error:
                self.job_queue.forget(job)
                refused = error
            else:
                if taken is not job:
                    self.job_queue.lead_to(job, taken)
        if refused is not None:
            raise refused

    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Cancel what waits and let what runs end; after `timeout` seconds (None: never) cancel that too. With a store
        that outlives the program nothing is cancelled: it stays there, for the next start. Where jobs are mirrored, a
        Prefect server that is behind or away gets 14 s more; what it has not recorded then is kept for the next start.
        """
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.to_thread(executor.shutdown, cancel_futures=True, timeout=timeout)
            self._ended(executor)

    def close(self) -> None:
        """End what still runs, at once, and let go of all workers and of the store. Harmless when it is stopped or
        closed already. A Prefect server gets 4 s, for final states alone. Jobs that
        wait for a start, or are added from now on, wait for the next."""
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
        self._quarantined = {job.job_id: job for job in executor.quarantined()}
        self.job_queue.remember(executor.history())

    async def retry_job(self, job_id: str, **changes: Any) -> str:
        """Queue a new job like one that is over, with `changes` to fields of Job (a longer `max_runtime`, other
        `kwargs`); its id. The new one's metadata has the old one's id as `retry_of`.

        Raises:
            InvalidJobError: no such job is known, it is not over, or it is quarantined and not released.
        """
        job = await self.get_job_status(job_id)
        if job is None:
            raise InvalidJobError(f"no job with the id {job_id!r} is known")
        if await self._is_quarantined(job_id):
            raise InvalidJobError(f"job {job_id} is quarantined: release({job_id!r}) first")
        return await self.job_queue.add_job(rerun(job, **changes))

    async def release(self, job_id: str) -> bool:
        """End a job's quarantine: `retry_job` may run it again then. False where no quarantined job has this id."""
        executor, store = self._executor, self._store
        if executor is not None:
            return await asyncio.to_thread(executor.release, job_id)
        known = self._quarantined.pop(job_id, None) is not None
        return known if store is None else await asyncio.to_thread(store.release, job_id)

    async def _is_quarantined(self, job_id: str) -> bool:
        stored = await self.job_queue.is_quarantined(job_id)
        if stored is not None:
            return stored
        executor = self._executor
        return job_id in (self._quarantined if executor is None else executor.stats().quarantined)

    async def get_job_status(self, job_id: str) -> Job | None:
        """The job itself, live; None where no such job is known."""
        return await self.job_queue.get_job(job_id)

    async def get_all_jobs(self) -> list[Job]:
        return await self.job_queue.list_jobs()

    async def cleanup_old_jobs(self, max_age_hours: float = 24) -> int:
        """Forget the jobs that have been over for more than `max_age_hours`; how many that were.

        Raises:
            ValueError: `max_age_hours` is not a finite number from 0 on.
        """
        return await self.job_queue.cleanup_old_jobs(max_age_hours)

    @property
    def config(self) -> Settings:
        """Those in force; before `start` those that it would read.

        Raises:
            ConfigurationError: naming key and value.
        """
        executor = self._executor
        return (self._config or load_config()) if executor is None else executor.config

    def running(self) -> list[Job]:
        """The jobs that have an attempt under way."""
        return [] if self._executor is None else self._executor.running()

    def stats(self, *, window: float = WINDOW) -> ExecutorStats | None:
        """The executor's counts and figures; None while it is not started."""
        return None if self._executor is None else self._executor.stats(window=window)

    async def _add(self, job: Job, own: dict[str, Any]) -> str:
        _refuse_unfit(job.function, own)
        job.kwargs.update(own)
        return await self.job_queue.add_job(job)

    def _accept(self, job: Job) -> Job:
        self._bind(job)
        with self._lock:
            if self._executor is not None:
                return self._submit(job, self._executor)
            if (twin := self._waiting_twin(job)) is not None:
                return twin
            self._check(job)
            self._waiting.append(job)
            return job

    def _submit(self, job: Job, executor: JobExecutor) -> Job:
        executor.fill_in_defaults(job)  # what the settings say of its pool counts before what the scheduler chooses
        self._choose_pool(job)
        return executor.submit(job).job

    def _waiting_twin(self, job: Job) -> Job | None:
        if job.dedupe_key is None:
            return None
        return next((other for other in self._waiting if other.dedupe_key == job.dedupe_key), None)

    def _check(self, job: Job) -> None:
        """Refuse what no settings, which are read at the start, would let run."""
        probe = job.model_copy()
        self._choose_pool(probe)
        check_job(probe)

    def _bind(self, job: Job) -> None:
        """Give the function what the job knows under a name that it takes and does not have yet."""
        takes = _Parameters(job.function)
        known = {"tool_name": job.tool_name} | {key: job.metadata.get(key) for key in self.bound_metadata}
        positional = takes.filled_by_position(len(job.args))
        for name, value in known.items():
            if value is not None and takes.accept(name) and name not in positional:
                job.kwargs.setdefault(name, value)

    def _choose_pool(self, job: Job) -> None:
        """Where neither the job nor the settings say one. Collection waits for others: a coroutine or a thread, as
        pool="auto" gives."""


class CollectionScheduler(_Scheduler):
    """Runs collection jobs: coroutine functions on an event loop, others in threads."""

    section: ClassVar[Stage] = "collection"
    bound_metadata = ("collection_type",)

    async def add_manual_job(
        self,
        job_type: str,
        function: Callable[..., Any] | str,
        tool_name: str | None = None,
        collection_type: str = "manual",
        **kwargs: Any,
    ) -> str:
        """Queue a collection job; its id. `kwargs` are the function's own arguments.

        The function also gets `tool_name` and `collection_type` where its signature takes them.

        Raises:
            InvalidJobError: the function takes no such argument, or the argument is named like a field of Job.
        """
        metadata = {"collection_type": collection_type}
        job = Job(job_type=job_type, function=function, tool_name=tool_name, metadata=metadata)
        return await self._add(job, kwargs)


class ProcessingScheduler(_Scheduler):
    """Runs processing jobs: synchronous functions in processes, coroutine functions on an event loop."""

    section: ClassVar[Stage] = "processing"
    bound_metadata = ("processing_stage",)

    async def add_processing_job(
        self,
        function: Callable[..., Any] | str,
        tool_name: str | None = None,
        processing_stage: str | None = None,
        data: Any = None,
        **kwargs: Any,
    ) -> str:
        """Queue a processing job; its id. `kwargs` are the function's own arguments.

        The function also gets `tool_name`, `processing_stage` and `data` where its signature takes them.

        Raises:
            InvalidJobError: the function takes no such argument, or the argument is named like a field of Job.
        """
        metadata = {} if processing_stage is None else {"processing_stage": processing_stage}
        job = Job(job_type="processing", function=function, tool_name=tool_name, metadata=metadata)
        if data is not None and _Parameters(function).accept("data"):
            job.kwargs["data"] = data
        return await self._add(job, kwargs)

    def _choose_pool(self, job: Job) -> None:
        if job.pool == "auto" and not is_coroutine_function(job.function):
            job.pool = "process"


class _Parameters:
    """What a function can be called with, as far as its signature tells."""

    def __init__(self, function: Callable[..., Any] | str) -> None:
        try:
            parameters = list(inspect.signature(resolve(function)).parameters.values())
        except ValueError:
            parameters = []
            self.unknown = True  # some built-in functions have no signature
        else:
            self.unknown = False
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.names = [p.name for p in parameters if p.kind in by_name]
        self._in_order = [p.name for p in parameters if p.kind in by_position]

    def accept(self, name: str) -> bool:
        return self.takes_any or name in self.names

    def filled_by_position(self, count: int) -> list[str]:
        return self._in_order[:count]


def _refuse_unfit(function: Callable[..., Any] | str, own: dict[str, Any]) -> None:
    takes = _Parameters(function)
    for name in own:
        if name in Job.model_fields:
            raise InvalidJobError(
                f"{name!r} is a field of Job, not an argument: make a Job with it and give that to job_queue.add_job"
            )
        if not takes.accept(name) and not takes.unknown:
            raise InvalidJobError(
                f"{function!r} takes no argument {name!r}: it takes {', '.join(takes.names) or 'none by name'}"
            )


collection_scheduler = CollectionScheduler()
processing_scheduler = ProcessingScheduler()
