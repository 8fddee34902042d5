"""JobExecutor: what users hold. It accepts jobs and passes them to its supervisor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from executor_adapter.config import Settings, load_config
from executor_adapter.exceptions import ConfigurationError, InvalidJobError, JobTimeoutError
from executor_adapter.executor.calling import JobCaller, check_shared_fields, run_in_window, with_progress
from executor_adapter.executor.defaults import (
    JobDefaults,
    check_capacity,
    kinds_of,
    lack_of_pool,
    limits_of_tools,
    make_pool,
    preload_in_workers,
    read_capacity,
    slot_limits,
)
from executor_adapter.executor.hooks import HookedExecution
from executor_adapter.executor.of_process import (
    DefaultExecutor,
    EntryToken,
    enter_executor,
    entered_executor,
    leave_executor,
    signal_watch,
    track,
)
from executor_adapter.job import (
    Job,
    JobResult,
    JobStatus,
    NearLimit,
    Observer,
    ToolLimit,
    check_arguments,
    check_count,
    check_is_job,
    check_max_workers,
    check_timeout,
    html_of_jobs,
    html_table,
    is_coroutine_function,
)
from executor_adapter.monitoring import export_metrics, tracer_in_use
from executor_adapter.persistence.history import QueueHistory
from executor_adapter.persistence.job_persistence import JobPersistence
from executor_adapter.pools.memory.available import AvailableMemory
from executor_adapter.pools.memory.guard import MemoryGuard
from executor_adapter.pools.selection import check_job
from executor_adapter.store import JobStore
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.limits import near_limits
from executor_adapter.supervision.messages import JobScope, program_output
from executor_adapter.supervision.outcome import DEFAULT_WINDOW_SECONDS, ExecutorStats, figures
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.supervision.thread import wait_saying

CATCH_UP_SECONDS = 10.0
"""Max seconds that `remove_observer` waits for a supervisor blocked by an observer."""


class JobExecutor(JobCaller):
    """Runs jobs in coroutines, threads and processes, each within its limits, retried by its policy.

    `max_workers`: how many attempts run at once; it may be changed at any time. A number counts over all pools of the
    executor, a mapping such as {"process": 4, "thread": 64} in each pool. None: what the setting
    `executor.max_workers` says. Where that is open too, and for pools that a mapping does not name: as many processes
    as there are processors, as many threads as Prefect's thread pool has (or 64), and 1,000 in all others.
    `max_pending`: how many jobs may wait for their first start; None for no limit.
    `capacity`: what the attempts that run at once may take of their `resources`, such as {"GPU": 2, "license": 3}; what
    it does not name, the setting `executor.capacity` or the machine has.
    `observers`: callables that get each `Transition`, in order, on the supervisor's thread; they must return quickly.
    `tool_limits`: by tool name, how many of its jobs run at once and how many start per second. They win over the
    section `tools` of the settings.
    `initializer`, `initargs`: called in each worker process before its first job.
    `config`: Settings; default: `load_config()`.
    `store`: where jobs are remembered, a JobStore or its URL (see `store.open_store`); None: nowhere. If the store
    outlives the program, jobs of a host that died run again from `start` or the `with` statement on. `queue` names the
    jobs that belong together: a host takes over jobs of its own queue only. `requeue_on_shutdown`: jobs that a shutdown
    or a signal interrupts stay pending in such a store, for the next host; otherwise, and where a `drive` drives them,
    they end CANCELLED.
    `address`: the cluster of jobs with pool="dask" or pool="ray", such as "tcp://scheduler:8786" or "head:6379"; by
    default that of the setting `cluster`.

    Leaving the executor as a context manager waits for its jobs; leaving it by an exception cancels them first. A
    signal that ends the program cancels them at once, see `signals`.

    An executor belongs to the process that made it. In a process forked from that one, methods that run something or
    wait for it raise ExecutorClosedError; `cancel` returns False; `stats`, `jobs` and `running` show the state at the
    fork; `shutdown` and leaving the `with` block return at once and end nothing.

    A subclass may override `execute_job` and the hooks below it. Then every attempt passes through `execute_job`, on an
    event loop of the executor's, and job tasks are refused; otherwise the supervisor runs attempts itself, without an
    event loop.
    """

    def __init__(
        self,
        max_workers: int | Mapping[str, int] | None = None,
        *,
        config: Settings | None = None,
        observers: Iterable[Observer] = (),
        max_pending: int | None = None,
        capacity: Mapping[str, float | str] | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        store: JobStore | str | None = None,
        queue: str = "",
        requeue_on_shutdown: bool = False,
        address: str | None = None,
    ) -> None:
        _refuse_gevent()
        check_max_workers(max_workers, or_none=", or None for the defaults")
        check_count("max_pending", max_pending, "leaves no place", or_none=", or None for no bound")
        self.config = config if config is not None else load_config()
        if address is not None:
            self.config = self.config.on_cluster(address)
        memory = self.config.executor.memory
        self._supervisor = self._make_supervisor(
            limits=slot_limits(self.config.executor.max_workers if max_workers is None else max_workers),
            make_pool=functools.partial(make_pool, self.config, initializer and (initializer, initargs)),
            kind_of=kinds_of(self.config),
            observers=tuple(observers),
            max_pending=max_pending,
            tool_limits=limits_of_tools(self.config, tool_limits),
            memory_guard=None if memory is None else MemoryGuard(AvailableMemory(memory)),
            read_capacity=functools.partial(read_capacity, self.config, check_capacity(capacity)),
            kill_grace=self.config.executor.kill_grace,
            output=self.config.executor.output,
        )
        self._defaults = JobDefaults(self.config)
        self._driven_defaults = JobDefaults(self.config.for_job_tasks())
        self._hooked = self._make_hooked()
        self._admit: Callable[..., JobFuture] = (self._hooked or self._supervisor).admit
        self._persistence: JobPersistence | None = None
        if store is not None:
            try:
                self._persistence = JobPersistence(
                    store,
                    self._supervisor,
                    self.config.store,
                    queue=queue,
                    requeue_on_shutdown=requeue_on_shutdown,
                    readmit=self._admit,
                    lack_of_pool=functools.partial(lack_of_pool, self.config),
                )
            except BaseException:
                self._supervisor.close(cancel_pending=False, cancel_running=False)  # Nobody else can.
                raise
        self._metrics = export_metrics(self, self.config.monitoring, self._supervisor)
        self._tracer = self._make_tracer()
        self._expected: set[concurrent.futures.Future[Any]] = set()
        self._tokens: list[EntryToken] = []
        track(self, self._supervisor)

    def __reduce__(self) -> Any:
        """Refuse to be sent to another process, where a function cannot submit to it.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a JobExecutor cannot be sent to another process: run a job that submits jobs with pool='thread' or "
            "'coroutine', or let it return what is to be submitted"
        )

    def _make_supervisor(self, **options: Any) -> Supervisor:
        return Supervisor(**options)

    def _make_hooked(self) -> HookedExecution | None:
        """Return what runs attempts through the methods that a subclass overrides; None where it overrides none."""
        kind = type(self)
        overridden = [name for name in _OVERRIDABLE if getattr(kind, name) is not getattr(JobExecutor, name)]
        if not overridden:
            return None
        for name in overridden:
            if not is_coroutine_function(inspect.unwrap(getattr(self, name))):
                raise ConfigurationError(f"{kind.__name__}.{name} is awaited, and is a plain function: use `async def`")
        return HookedExecution(self._supervisor, self, applies_max_runtime="execute_job" not in overridden)

    def _make_tracer(self) -> Callable[[JobScope | None], JobScope] | None:
        """Return what puts a submitted job into a span of its own; None where the program has set up no tracer."""
        tracer = tracer_in_use()
        if tracer is None:
            return None
        from executor_adapter.monitoring import INSIDE, JobTracer, SpanScope  # They need OpenTelemetry, an extra.

        preload_in_workers(INSIDE.partition(":")[0])
        spans = JobTracer(tracer)
        self.add_observer(spans.on_transition)
        return functools.partial(SpanScope, spans)

    # --- jobs ---

    def submit(self, job: Job, *, timeout: float | None = None, scope: JobScope | None = None) -> JobFuture:
        """Queue a job and return its future.

        While `max_pending` jobs are waiting it blocks, for at most `timeout` seconds if that is given. If a live job
        has the same `dedupe_key`, it returns that job's future. `scope` sets up what the function sees around it.

        Raises:
            InvalidJobError: The job can never run as given; the message names the reason and the fix.
            JobSerializationError: With pool="process", the function or an argument cannot be pickled.
            QueueFullError: No place became free within `timeout`.
            StoreUnavailableError: Too many changes of jobs wait for a store that cannot be written.
            ExecutorClosedError: The executor is shut down, or was made before this process was forked.
        """
        if type(job) is not Job:
            check_is_job(job)
        if self._supervisor.intake.closed:
            self._supervisor.intake.refuse_if_closed()
        if self._defaults.any:
            self.fill_in_defaults(job)
        if self._tracer is not None:
            scope = self._tracer(scope)
        stored = None if self._persistence is None else self._persistence.prepare(job)
        return self._admit(job, timeout=timeout, scope=scope, stored=stored)

    def fill_in_defaults(self, job: Job) -> None:
        """Set the open fields of a job that was not submitted yet from the settings, as `submit` does.

        Raises:
            InvalidJobError: A field of the job contradicts the settings.
        """
        if self._defaults.any and job.live.future is None:
            self._defaults.fill_in(job)

    def run(self, job: Job) -> Any:
        """Submit a job, wait for it, and return its value or raise the exception it ended with."""
        return self.submit(job).result()

    def _map(
        self,
        fields: Mapping[str, Any],
        function: Callable[..., Any] | str,
        iterables: Sequence[Iterable[Any]],
        *,
        ordered: bool,
        window: int | None,
        progress: bool,
    ) -> Iterator[JobResult]:
        """Do what `map` does, with all fields of its jobs."""
        pool = self._check_map(fields, function, len(iterables), window)
        jobs = (Job(function=function, args=args, **fields) for args in zip(*iterables, strict=False))
        window = window or 4 * self._supervisor.dispatcher.limits.of(pool)
        run = functools.partial(run_in_window, jobs=jobs, window=window, ordered=ordered)
        return with_progress(run, self.submit, function, iterables) if progress else run(self.submit)

    def _check_map(
        self, fields: Mapping[str, Any], function: Callable[..., Any] | str, arguments: int, window: int | None
    ) -> str:
        """Refuse a `map` none of whose jobs could run, by checking one that is never run; return the name of its pool.

        Raises:
            InvalidJobError: A field identifies a single job, or the pool cannot run such a job.
            ValueError: `window` is not a number of jobs.
        """
        check_count("window", window, "lets no job start", or_none=", or None for four a worker")
        check_shared_fields(fields)
        probe = Job(function=function, **fields)
        self.fill_in_defaults(probe)
        pool, _ = check_job(probe, kinds_of(self.config))
        if self._hooked is None:  # The function is called with the job's arguments as they are.
            check_arguments(function, (None,) * arguments, probe.kwargs)
        return pool

    def drive(self, job: Job, *, on_message: Callable[[str, Any], None] | None = None) -> JobDriver:
        """Accept a job whose retries the caller decides; see JobDriver, also for `on_message`.

        Where neither the job nor the settings say more, it has one attempt without a limit, like a task of Prefect's.
        Where a live job has the same dedupe_key, that one's future is the `twin` of the driver, which drives nothing.

        Raises:
            InvalidJobError: As `submit`; or the class has hooks, which the caller would not call.
            JobSerializationError, QueueFullError, ExecutorClosedError: As `submit`.
        """
        self._supervisor.intake.refuse_if_closed()
        if self._hooked is not None:
            raise InvalidJobError(f"job tasks do not call the hooks of {type(self).__name__}: use run_jobs or submit")
        if job.live.future is None:  # Otherwise it is refused, and stays as it is.
            self._driven_defaults.fill_in(job)
        driver = JobDriver(job, self._supervisor, on_message=on_message)
        scope = self._tracer and self._tracer(None)
        stored = None if self._persistence is None else self._persistence.prepare(job, driven=True)
        future = self._supervisor.admit(job, driver=driver, scope=scope, stored=stored)
        future.note_read()  # The caller ends the job itself, or reads how its twin ends.
        driver.twin = None if future.job is job else future
        return driver

    def cancel(self, job_id: str) -> bool:
        """End a job that is queued, waiting for a retry or running. Return False where no live job has this id."""
        job = self._supervisor.intake.jobs.get(job_id)
        return job is not None and self._supervisor.cancel_job(job)

    def jobs(self) -> list[Job]:
        """Return the jobs that are not finished."""
        return list(self._supervisor.intake.jobs.values())

    def running(self) -> list[Job]:
        """Return the jobs that have a running attempt."""
        return [assignment.job for assignment in self._supervisor.running()]

    # --- slots ---

    @property
    def max_workers(self) -> int | Mapping[str, int]:
        """How many attempts may run at once: over all pools, or in each one. May be set at any time, by any thread.

        With a larger number, waiting jobs start at once. With a smaller one, the attempts that run now run to their
        end, and no other one starts until fewer than the new number run.

        Raises:
            ValueError: A number is less than 1, or not an integer, or a name is not that of a pool.
            ExecutorClosedError: It is set in a process that was forked from the executor's.
        """
        limits = self._supervisor.dispatcher.limits
        return dict(limits.of_pool) if limits.of_pool else limits.total

    @max_workers.setter
    def max_workers(self, slots: int | Mapping[str, int]) -> None:
        check_max_workers(slots)
        self._supervisor.check_not_forked()
        self._supervisor.resize(slot_limits(slots))

    # --- what can be seen ---

    def add_observer(self, observer: Observer) -> None:
        """Call `observer` with each transition from now on, as one of `observers`."""
        self._supervisor.tracker.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Stop calling `observer`, once it has got every transition up to now; it need not have been added.

        A caller that has seen a job end may call this before the executor is done with the job: the engine that drives
        a job reports its end a moment earlier.
        """
        self._supervisor.thread.catch_up(CATCH_UP_SECONDS)
        with contextlib.suppress(ValueError):
            self._supervisor.tracker.observers.remove(observer)

    def near_limits(self) -> list[NearLimit]:
        """Return the limits that live jobs are near to: they have used the share `monitoring.near_limit` of them."""
        supervisor, share = self._supervisor, self.config.monitoring.near_limit
        return [] if share is None else [*near_limits(supervisor.running(), self.jobs(), share, supervisor.now())]

    def stats(self, *, window: float = DEFAULT_WINDOW_SECONDS) -> ExecutorStats:
        """Return counts since the executor was made, and figures of jobs that ended in the last `window` seconds."""
        supervisor = self._supervisor
        counts, pools, now = supervisor.tracker.counts, supervisor.pools.stats(), supervisor.now()
        begun = [run.started_at for run in supervisor.running() if run.started_at is not None]
        guard = supervisor.dispatcher.memory_guard
        level = None if guard is None else guard.read()
        return ExecutorStats(
            jobs_pending=supervisor.intake.admitted + counts[JobStatus.PENDING],
            jobs_running=counts[JobStatus.RUNNING],
            jobs_retrying=counts[JobStatus.RETRYING],
            jobs_completed=counts[JobStatus.COMPLETED],
            jobs_failed=counts[JobStatus.FAILED],
            jobs_cancelled=counts[JobStatus.CANCELLED],
            retries=supervisor.tracker.retries,
            workers_busy=pools["workers_busy"],
            abandoned_threads=pools["abandoned_threads"]
            + (0 if self._hooked is None else self._hooked.calls.abandoned),
            quarantined=tuple(supervisor.intake.quarantined),
            longest_running_seconds=now - min(begun) if begun else None,
            jobs_near_limit=len({near.job for near in self.near_limits()}),
            waits_for_memory=guard is not None and guard.holds,
            waiting_for_resources=supervisor.dispatcher.waiting_for_resources(),
            memory_limit_bytes=None if level is None else level.limit,
            memory_left_bytes=None if level is None else level.left,
            **figures(supervisor.tracker.ended, now=time.time(), window=window),
        )

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds the metrics; None where none are served at `monitoring.metrics_port`."""
        return None if self._metrics is None else self._metrics.url

    def _repr_html_(self) -> str:
        stats, running = self.stats(), self.running()
        state = "shut down" if self.is_closed else "shutting down" if self.is_shutting_down else "open"
        counts = [getattr(stats, f"jobs_{name}") for name in _SHOWN_COUNTS]
        shown = html_table(f"JobExecutor({self.max_workers}), {state}", _SHOWN_COUNTS, [counts])
        return shown + (html_of_jobs("running", running) if running else "")

    # --- what a subclass may override ---

    async def execute_job(self, job: Job) -> Any:
        """Run one attempt: call the hooks, apply `max_runtime`, return the value or raise the exception.

        Where a subclass overrides this method, its timeout is the one that counts.
        """
        await self.pre_execution_hook(job)
        try:
            result = await self._within_max_runtime(job)
        except Exception as error:
            await self.error_hook(job, error)
            raise
        await self.post_execution_hook(job, result)
        return result

    async def _within_max_runtime(self, job: Job) -> Any:
        try:
            async with asyncio.timeout(job.max_runtime) as limit:
                return await self._execute_function(job)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise JobTimeoutError(f"ran longer than max_runtime={job.max_runtime} s") from error

    async def _execute_function(self, job: Job) -> Any:
        """Run the function itself in the job's pool, without a time limit.

        Cancelling it returns once the work is dead or, in a thread that cannot be stopped, abandoned.
        """
        if self._hooked is None:
            raise InvalidJobError("execute_job runs inside the executor: submit the job instead of calling it")
        return await self._hooked.attempt(job)

    async def pre_execution_hook(self, job: Job) -> None:
        """Do something before each attempt, once it has a slot."""

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        """Do something after each attempt that returned."""

    async def error_hook(self, job: Job, error: Exception) -> None:
        """Do something after each attempt that failed."""

    # --- quarantine ---

    def quarantined(self) -> list[Job]:
        """Return the jobs that killed more workers than their policy allows: they need `release` to be submitted again.

        Holds the newest `quarantine.MAX_QUARANTINED`; with each further one the oldest is evicted.
        """
        return list(self._supervisor.intake.quarantined.values())

    def quarantine(self, jobs: Iterable[Job]) -> None:
        """Hold these jobs in quarantine, as an earlier executor of the same queue did."""
        for job in jobs:
            self._supervisor.intake.quarantined[job.job_id] = job

    def release(self, job_id: str) -> bool:
        """Let a quarantined job be submitted again. Return False where no quarantined job has this id.

        Raises:
            StoreUnavailableError: The store cannot be reached.
            ExecutorClosedError: The executor is shut down, and had a store: the store's own `release` is left.
        """
        self._supervisor.check_not_forked()
        is_stored = self._persistence is not None and self._persistence.release(job_id)
        return self._supervisor.intake.quarantined.pop(job_id, None) is not None or is_stored

    # --- store ---

    @property
    def store(self) -> JobStore | None:
        """The store that remembers the jobs; None where there is none."""
        return None if self._persistence is None else self._persistence.store

    def history(self) -> QueueHistory | None:
        """Return the stored jobs of this queue; None if the store does not outlive the program."""
        return None if self._persistence is None else self._persistence.history()

    def recover(self) -> list[Job]:
        """Take over the jobs of this queue whose host has died, and return them; they run here now.

        Raises:
            StoreUnavailableError: The store cannot be reached.
            ExecutorClosedError: The executor is shut down.
        """
        self._supervisor.check_not_forked()
        return [] if self._persistence is None else self._persistence.recover()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the store has all that happened to the jobs so far. Return False after `timeout` seconds."""
        self._supervisor.check_not_forked()
        return self._persistence is None or self._persistence.recorder.flush(timeout)

    # --- lifetime ---

    @property
    def is_shutting_down(self) -> bool:
        """Whether the executor accepts no more jobs: shutdown has begun, or is complete."""
        return self._supervisor.intake.closed

    @property
    def is_closed(self) -> bool:
        """Whether shutdown is complete: all jobs are finished and all workers have exited."""
        return self._supervisor.thread.closed.is_set()

    def add_close_callback(self, callback: Callable[[], object]) -> None:
        """Call `callback` on the supervisor's thread once all jobs are finished, before `shutdown` returns."""
        self._supervisor.thread.on_closed.append(callback)

    def expect(self, work: concurrent.futures.Future[Any]) -> None:
        """Let `shutdown` wait for `work`, which is to submit or drive jobs later, before it accepts no more."""
        self._expected.add(work)
        work.add_done_callback(self._expected.discard)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more jobs, and end once those that were submitted are finished.

        By default every submitted job runs to its end, and every job task that was submitted to run here.
        `cancel_futures=True` cancels jobs that have not started. `timeout` cancels what is not finished after so many
        seconds, running or not; 0 cancels all at once. `wait=False` returns immediately, whatever the mode; otherwise
        it also waits for callbacks of futures, unless one takes longer than ten seconds. Another call can only make it
        end sooner. An observer, which runs on the thread that ends jobs, never waits.

        Raises:
            ValueError: `timeout` is not a number of seconds.
            RuntimeError: A job of this executor, or a hook, asks to wait for its own end; nothing is shut down.
        """
        check_timeout("timeout", timeout)
        wait = wait and self._supervisor.thread.may_wait()
        if wait and self._supervisor.futures.loan_of_caller() is not None:
            raise RuntimeError("a job cannot wait until its own executor has ended: give shutdown(wait=False)")
        # Inline jobs may wait for a clock that their caller has to move.
        runs_all = wait and not cancel_futures and timeout is None and not self._supervisor.thread.is_inline
        try:
            while runs_all and (expected := self._expected.copy()) and not self.is_closed:
                wait_saying(functools.partial(_all_done, expected), "job tasks that have not ended", expected.__len__)
        finally:
            self._supervisor.close(cancel_pending=cancel_futures, cancel_running=timeout == 0)
        if timeout and not wait:
            self._supervisor.close_within(timeout)
        if not wait:
            return
        if timeout and not self._supervisor.thread.closed.wait(min(timeout, threading.TIMEOUT_MAX)):
            self._supervisor.close(cancel_pending=True, cancel_running=True)
        self._supervisor.thread.wait()
        program_output.wait()
        signal_watch.disarm()

    async def start(self) -> None:
        """Recover jobs, where there is a store; everything else starts with the first job."""
        await asyncio.to_thread(self.recover)

    async def stop(self) -> None:
        """Cancel jobs that have not started, and wait for those that run, without blocking the event loop."""
        await asyncio.to_thread(self.shutdown, cancel_futures=True)

    def __enter__(self) -> Self:
        with self._entering():
            self.recover()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        leave_executor(self._tokens.pop())
        self.shutdown(timeout=None if kind is None else 0)

    async def __aenter__(self) -> Self:
        with self._entering():
            await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *details: object) -> None:
        leave_executor(self._tokens.pop())
        await asyncio.to_thread(self.shutdown, timeout=None if kind is None else 0)

    @contextlib.contextmanager
    def _entering(self) -> Iterator[None]:
        """Make this the current executor; one that cannot recover its jobs is left again."""
        self._supervisor.check_not_forked()
        self._tokens.append(enter_executor(lambda: self))
        signal_watch.arm()
        try:
            yield
        except BaseException as error:
            self.__exit__(type(error))
            raise


def _all_done(futures: Iterable[concurrent.futures.Future[Any]], timeout: float) -> bool:
    return not concurrent.futures.wait(futures, timeout).not_done


def _refuse_gevent() -> None:
    """Check that gevent has not replaced the threads, queues, descriptors and signals of this program.

    Raises:
        ConfigurationError: It has, and an executor would wait for ever.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, _PATCHED_BY_GEVENT)):
        raise ConfigurationError(
            "gevent.monkey has patched this program, and an executor needs real threads, queues and sockets: "
            "make the executor in a program that gevent has not patched, and let this one send it what to run"
        )


_PATCHED_BY_GEVENT = ("threading", "queue", "select", "socket", "os", "signal", "subprocess", "time")

_OVERRIDABLE = ("execute_job", "_execute_function", "pre_execution_hook", "post_execution_hook", "error_hook")
_SHOWN_COUNTS = ("pending", "running", "retrying", "completed", "failed", "cancelled")


def current_executor() -> JobExecutor:
    """Return the innermost `with JobExecutor(...)` around the caller, else the default executor of this process.

    An executor that was entered before this process was forked does not count.
    """
    find = entered_executor() or _default.get
    executor: JobExecutor = find()
    return executor


_default = DefaultExecutor(JobExecutor)
