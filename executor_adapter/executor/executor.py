"""JobExecutor: what users hold. It takes jobs in and hands them to its supervisor."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from executor_adapter.config.settings import Settings, load_config
from executor_adapter.exceptions import InvalidJobError, JobTimeoutError
from executor_adapter.executor.job_defaults import JobDefaults
from executor_adapter.executor.job_defaults import tool_limits as limits_of_tools
from executor_adapter.executor.signals import signal_watch
from executor_adapter.job.functions import check_arguments
from executor_adapter.job.model import Job, JobResult, JobStatus, check_is_job
from executor_adapter.job.validation import check_count
from executor_adapter.monitoring.metrics_port import serve_metrics
from executor_adapter.monitoring.tracing import tracer_in_use
from executor_adapter.persistence.job_persistence import Memory
from executor_adapter.pools import pool_kinds
from executor_adapter.pools.base import WorkerPool
from executor_adapter.scheduler.job_queue import StoredPast
from executor_adapter.store.base import JobStore
from executor_adapter.supervision.driver import JobDriver
from executor_adapter.supervision.futures import JobFuture
from executor_adapter.supervision.hooks import HookedExecution
from executor_adapter.supervision.intake import check_job
from executor_adapter.supervision.job_scope import Surroundings
from executor_adapter.supervision.rate_limiter import ToolLimit
from executor_adapter.supervision.state_tracker import Observer
from executor_adapter.supervision.stats import WINDOW, ExecutorStats, figures
from executor_adapter.supervision.supervisor import Supervisor

CATCH_UP_SECONDS = 10.0
"""For which a supervisor that an observer holds up may keep those who want to be told no more."""


class _Entered(NamedTuple):
    pid: int
    find: Callable[[], JobExecutor]


_current: contextvars.ContextVar[_Entered | None] = contextvars.ContextVar("executor", default=None)


class JobExecutor:
    """Runs jobs in coroutines, threads and processes, each within its limits, retried by its policy.

    `max_workers`: at most so many attempts at once, over all its pools; pools start when first used.
    `max_pending`: at most so many jobs that wait for their first start; None: no bound.
    `observers`: callables told of each `Transition`, in order, on the supervisor's thread: they must be quick.
    `tool_limits`: by tool name, how many of its jobs run at once and how many start in a second; wins over the
    settings' section `tools`.
    `initializer`, `initargs`: called in each worker process before its first job.
    `config`: Settings; default: `load_config()`.
    `store`: where its jobs are remembered, a JobStore or the URL of one (see `store.open_store`); None: nowhere. With
    one that outlives the program, jobs of a host that died run again from `start` or the `with` on. `queue` names whose
    jobs they are: hosts take over those of their own queue. `hands_over`: what a shutdown or a signal cuts off stays
    pending there, for the next host; else it is CANCELLED.

    Leaving it as a context manager waits for its jobs; leaving it by an exception ends them first. A signal that ends
    the program ends them at once, see `signals`.

    It belongs to the process that made it. In one forked from that, what needs it to run something, or to wait for it,
    raises ExecutorClosedError; `cancel` gives False, `stats`, `jobs` and `running` tell what was so at the fork, and
    `shutdown` and leaving the `with` block return at once, and end nothing.
    """

    def __init__(
        self,
        max_workers: int = 4,
        *,
        config: Settings | None = None,
        observers: Iterable[Observer] = (),
        max_pending: int | None = None,
        tool_limits: Mapping[str, ToolLimit] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        store: JobStore | str | None = None,
        queue: str = "",
        hands_over: bool = False,
    ) -> None:
        check_count("max_workers", max_workers, "leaves no worker")
        if max_pending is not None:
            check_count("max_pending", max_pending, "leaves no place", or_none=", or None for no bound")
        self.max_workers = max_workers
        self.config = config if config is not None else load_config()
        self._supervisor = self._make_supervisor(
            max_workers=max_workers,
            make_pool=functools.partial(_make_pool, max_workers, self.config, initializer and (initializer, initargs)),
            kind_of=pool_kinds(self.config.executor.start_method),
            observers=tuple(observers),
            max_pending=max_pending,
            tool_limits=limits_of_tools(self.config, tool_limits),
            kill_grace=self.config.executor.kill_grace,
        )
        self._defaults = JobDefaults(self.config)
        self._hooked = self._hooked_execution()
        self._memory = None if store is None else Memory(store, self, queue=queue, hands_over=hands_over)
        ledger, on_closed = self._supervisor.ledger, self._supervisor.on_closed
        self._metrics = serve_metrics(self, self.config.monitoring, observers=ledger.observers, on_closed=on_closed)
        self._tracer = _job_tracer(ledger.observers)
        self._tokens: list[contextvars.Token[_Entered | None]] = []
        _track(self, self._supervisor)

    # --- jobs ---

    def submit(self, job: Job, *, timeout: float | None = None, surroundings: Surroundings | None = None) -> JobFuture:
        """Queue a job; its future.

        While `max_pending` jobs wait it blocks, for at most `timeout` seconds where that is given. A live job with
        the same `dedupe_key` is returned instead of a second one. `surroundings`: what its function sees, and who
        hears what it says.

        Raises:
            InvalidJobError: the job can never run as it asks to; the message says why and the way out.
            JobSerializationError: pool="process", and the function or an argument cannot be pickled.
            QueueFullError: no place within `timeout`.
            ExecutorClosedError: after shutdown, and in a process forked since it was made.
        """
        check_is_job(job)
        self._supervisor.intake.refuse_if_closed()
        if self._defaults.any:
            self._defaults.fill_in(job)
        if self._tracer is not None:
            surroundings = self._tracer(surroundings)
        if self._memory is None:
            return self._admit(job, timeout=timeout, surroundings=surroundings)
        return self._memory.admit(job, lambda: self._admit(job, timeout=timeout, surroundings=surroundings))

    def _admit(self, job: Job, **how: Any) -> JobFuture:
        return (
            self._supervisor.admit(job, **how)
            if self._hooked is None
            else self._hooked.submit(job, self.execute_job, **how)
        )

    def run(self, job: Job) -> Any:
        """Submit the job and wait: its value, or the exception it ended with."""
        return self.submit(job).result()

    def map(
        self,
        function: Callable[..., Any] | str,
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
        **job_fields: Any,
    ) -> Iterator[JobResult]:
        """One job for each tuple of arguments; results in order of submission, or as they come (`ordered=False`).

        Lazy and bounded: at most `window` jobs (default: four a worker) are under way at a time, so that an endless
        iterable is fine. `job_fields` are fields of `Job`, for all of them. A failed job gives a JobResult with its
        error, and raises nothing.

        Raises:
            ValueError: no such job could ever run, whatever its arguments; nothing is started.
        """
        limit = self._window(window)
        self._check_fields(function, len(iterables), job_fields)
        jobs = (Job(function=function, args=args, **job_fields) for args in zip(*iterables, strict=False))
        return self._in_order(jobs, limit) if ordered else self._as_completed(jobs, limit)

    def cancel(self, job_id: str) -> bool:
        """End a job wherever it is: queued, waiting for a retry or running. False where no live job has this id."""
        job = self._supervisor.intake.jobs.get(job_id)
        return job is not None and self._supervisor.cancel(job)

    def drive(self, job: Job) -> JobDriver:
        """Take in a job whose retries the caller decides; see JobDriver.

        Raises as `submit` does, and InvalidJobError where a live job has the same dedupe_key: it cannot be driven too.
        """
        self._supervisor.intake.refuse_if_closed()
        if self._defaults.any:
            self._defaults.fill_in(job)
        driver = JobDriver(job, self._supervisor)
        around = None if self._tracer is None else self._tracer(None)
        admit = functools.partial(self._supervisor.admit, job, driver=driver, surroundings=around)
        twin = (admit() if self._memory is None else self._memory.admit(job, admit, driven=True)).job
        if twin is not job:
            raise InvalidJobError(f"job {twin.job_id} with dedupe_key={job.dedupe_key!r} is live: wait for that one")
        return driver

    def quarantined(self) -> list[Job]:
        """The jobs that killed more workers than their policy allows; submitting one again needs `release` first.

        The newest `quarantine.MOST_QUARANTINED` of them: with each further one the oldest is let go of.
        """
        return list(self._supervisor.intake.quarantined.values())

    def release(self, job_id: str) -> bool:
        """Let a quarantined job be submitted again; False where none has this id."""
        self._supervisor.refuse_if_parents()
        released = self._supervisor.intake.quarantined.pop(job_id, None) is not None
        return (self._memory is not None and self._memory.release(job_id)) or released

    def recover(self) -> list[Job]:
        """Take over the jobs of this queue in the store that nobody runs, since their host is gone; they run here now.

        Raises:
            StoreUnavailable
        """
        self._supervisor.refuse_if_parents()
        return [] if self._memory is None else self._memory.recover()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what became of its jobs by now is in the store; False where it is not within `timeout` seconds."""
        self._supervisor.refuse_if_parents()
        return self._memory is None or self._memory.recorder.flush(timeout)

    @property
    def store(self) -> JobStore | None:
        """Where its jobs are remembered."""
        return None if self._memory is None else self._memory.store

    def past(self) -> StoredPast | None:
        """What the store knows of the jobs of this queue; None where it does not outlive the program."""
        return None if self._memory is None else self._memory.past()

    def jobs(self) -> list[Job]:
        """The jobs that are not over."""
        return list(self._supervisor.intake.jobs.values())

    def add_observer(self, observer: Observer) -> None:
        """Have `observer` told of each transition from now on, as one of `observers`."""
        self._supervisor.ledger.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Tell `observer` no more, once it was told of all that has happened by now; it need not have been added.

        Whoever has seen a job's end may ask for this before the job is over here: its engine says so a moment earlier.
        """
        self._supervisor.catch_up(CATCH_UP_SECONDS)
        with contextlib.suppress(ValueError):
            self._supervisor.ledger.observers.remove(observer)

    def running(self) -> list[Job]:
        """The jobs that have an attempt under way."""
        return [assignment.job for assignment in self._supervisor.running()]

    def stats(self, *, window: float = WINDOW) -> ExecutorStats:
        """Counts since the executor was made, and figures of the jobs that ended within the last `window` seconds."""
        ledger = self._supervisor.ledger
        counts, now, pools = ledger.counts, self._supervisor.now(), self._supervisor.pools.stats()
        begun = [run.started_at for run in self._supervisor.running() if run.started_at is not None]
        return ExecutorStats(
            jobs_pending=counts[JobStatus.PENDING],
            jobs_running=counts[JobStatus.RUNNING],
            jobs_retrying=counts[JobStatus.RETRYING],
            jobs_completed=counts[JobStatus.COMPLETED],
            jobs_failed=counts[JobStatus.FAILED],
            jobs_cancelled=counts[JobStatus.CANCELLED],
            retries=ledger.retries,
            workers_busy=pools["workers_busy"],
            abandoned_threads=pools["abandoned_threads"] + (0 if self._hooked is None else self._hooked.abandoned),
            quarantined=tuple(self._supervisor.intake.quarantined),
            longest_running_seconds=now - min(begun) if begun else None,
            **figures(ledger.ended, now=time.time(), window=window),
        )

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds the metrics; None where none are served."""
        return None if self._metrics is None else self._metrics.url

    # --- lifetime ---

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Take no more jobs. Then, by mode:

        drain (the default): what was submitted is run to its end. `cancel_futures=True`: what has not started is
        cancelled, what runs may end. `timeout`: what is not over after so many seconds is cancelled, running or not;
        0 ends all at once. `wait=False` returns immediately, whatever the mode; else callbacks of futures are waited
        for too, unless one takes longer than ten seconds. Calling it again only hastens it.
        """
        self._supervisor.close(cancel_pending=cancel_futures, cancel_running=timeout == 0)
        if timeout and not wait:
            self._supervisor.cut_off_in(timeout)
        if not wait:
            return
        if timeout and not self._supervisor.closed.wait(min(timeout, threading.TIMEOUT_MAX)):
            self._cancel_all()
        self._supervisor.wait()
        signal_watch.disarm()

    def _cancel_all(self) -> None:
        self._supervisor.close(cancel_pending=True, cancel_running=True)

    async def start(self) -> None:
        """Recover jobs, where there is a store; all else starts with the first job."""
        await asyncio.to_thread(self.recover)

    async def stop(self) -> None:
        """Shut down, waiting for what runs and cancelling what does not, without blocking the event loop."""
        await asyncio.to_thread(self.shutdown, cancel_futures=True)

    def __enter__(self) -> Self:
        self._supervisor.refuse_if_parents()
        self._tokens.append(enter_executor(lambda: self))
        signal_watch.arm()
        self.recover()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leave_executor(self._tokens.pop())
        self.shutdown(timeout=None if kind is None else 0)

    async def __aenter__(self) -> Self:
        self._supervisor.refuse_if_parents()
        self._tokens.append(enter_executor(lambda: self))
        signal_watch.arm()
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        leave_executor(self._tokens.pop())
        await asyncio.to_thread(self.shutdown, timeout=None if kind is None else 0)

    # --- to be overridden ---

    async def execute_job(self, job: Job) -> Any:
        """One attempt: hooks, max_runtime, the value or the exception.

        Where a subclass overrides this or a hook, every attempt passes through here, on an event loop of the
        executor's; its timeout is then the one that counts.
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
        """The function itself, in the job's pool, with no limit of its own.

        Cancelling it returns once the work is dead or written off.
        """
        if self._hooked is None:
            raise InvalidJobError("execute_job runs inside the executor: submit the job instead of calling it")
        return await self._hooked.attempt(job)

    async def pre_execution_hook(self, job: Job) -> None:
        """Called before each attempt, once it has a slot."""

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        """Called after each attempt that returned."""

    async def error_hook(self, job: Job, error: Exception) -> None:
        """Called after each attempt that failed."""

    # --- inside ---

    def _make_supervisor(self, **options: Any) -> Supervisor:
        return Supervisor(**options)

    def _window(self, window: int | None) -> int:
        if window is None:
            return 4 * self.max_workers
        check_count("window", window, "lets no job start", or_none=", or None for four a worker")
        return window

    def _check_fields(self, function: Callable[..., Any] | str, arguments: int, fields: Mapping[str, Any]) -> None:
        """Refuse what no job of a `map` can be, by one that is never run."""
        for name in ("args", "job_id"):
            if name in fields:
                raise InvalidJobError(f"{name}={fields[name]!r} cannot be that of each job: leave it out")
        if (key := fields.get("dedupe_key")) is not None:
            raise InvalidJobError(
                f"dedupe_key={key!r} makes one job of all that are live: leave it out, or submit jobs with a key each"
            )
        probe = Job(function=function, **fields)
        self._defaults.fill_in(probe)
        check_job(probe, pool_kinds(self.config.executor.start_method))
        if self._hooked is None:
            check_arguments(function, (None,) * arguments, probe.kwargs)

    def _hooked_execution(self) -> HookedExecution | None:
        """What has attempts pass through the methods of a subclass, where it has any."""
        kind = type(self)
        names = ("execute_job", "_execute_function", "pre_execution_hook", "post_execution_hook", "error_hook")
        if all(getattr(kind, name) is getattr(JobExecutor, name) for name in names):
            return None
        return HookedExecution(self._supervisor, applies_max_runtime=kind.execute_job is JobExecutor.execute_job)

    def _in_order(self, jobs: Iterator[Job], limit: int) -> Iterator[JobResult]:
        with _cancelling() as futures:
            futures.extend(self.submit(job) for job in itertools.islice(jobs, limit))
            while futures:
                wait([futures[0]])
                yield result_of(futures.popleft())
                futures.extend(self.submit(job) for job in itertools.islice(jobs, 1))

    def _as_completed(self, jobs: Iterator[Job], limit: int) -> Iterator[JobResult]:
        with _cancelling() as futures:
            futures.extend(self.submit(job) for job in itertools.islice(jobs, limit))
            while futures:
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    futures.remove(future)
                futures.extend(self.submit(job) for job in itertools.islice(jobs, len(done)))
                yield from map(result_of, done)


@contextlib.contextmanager
def _cancelling() -> Iterator[deque[Future[Any]]]:
    """Futures that are cancelled if whoever wanted them goes away."""
    futures: deque[Future[Any]] = deque()
    try:
        yield futures
    finally:
        for future in futures:
            future.cancel()


_preloads: list[str] = []


def preload_in_workers(*modules: str) -> None:
    """Have process pools made from now on preload these modules too, whatever their configuration says.

    For what runs around functions in a worker: imported there on first use, it would count towards their limits.
    """
    _preloads.extend(modules)


def _make_pool(
    max_workers: int,
    config: Settings,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    name: str,
    supervisor: Supervisor,
) -> WorkerPool:
    kind: Callable[..., WorkerPool] = pool_kinds(config.executor.start_method)(name)
    if name != "process":
        return kind(supervisor, max_workers)
    names = {"preload", "max_jobs_per_worker", "max_rss_growth", "nice", "cpu_affinity"}
    options = config.executor.model_dump(include=names, exclude_none=True)
    options["preload"] = tuple(dict.fromkeys((*options["preload"], *_preloads)))
    return kind(supervisor, max_workers, initializer=initializer, **options)


def result_of(future: Future[Any]) -> JobResult:
    """How the job of a future that is done ended."""
    assert isinstance(future, JobFuture)
    error = future.exception()
    job = future.job
    return JobResult(
        job_id=job.job_id,
        status=job.status,
        value=future.result() if error is None else None,
        error=error,
        error_code=job.error_code if error is not None else None,
        attempts=len(job._live.attempts or ()),
        duration=job.duration,
    )


def _job_tracer(observers: list[Observer]) -> Callable[[Surroundings | None], Surroundings] | None:
    """What puts a job that is submitted into a span, where a tracer is set up."""
    tracer = tracer_in_use()
    if tracer is None:
        return None
    from executor_adapter.executor.traced import TracedSurroundings, job_tracer

    preload_in_workers("executor_adapter.trace_scope")
    spans = job_tracer(tracer)
    observers.append(spans.tell)
    return functools.partial(TracedSurroundings, spans)


_open: set[Supervisor] = set()
"""Those that are not closed. Kept here, since an executor may be let go of before its jobs are over."""


def _track(executor: JobExecutor, supervisor: Supervisor) -> None:
    """Close the supervisor when its executor is let go of, when the program is told to end, and at its exit."""
    _open.add(supervisor)
    supervisor.let_go_of = functools.partial(_open.discard, supervisor)
    signal_watch.listen(supervisor.told_to_end)
    supervisor.on_closed.append(functools.partial(signal_watch.leave, supervisor.told_to_end))
    drain = functools.partial(supervisor.close, cancel_pending=False, cancel_running=False)
    weakref.finalize(executor, drain).atexit = False


def stop_tracking(supervisor: Supervisor) -> None:
    """Do not wait for it at the interpreter's exit."""
    _open.discard(supervisor)


@atexit.register
def _drain_all() -> None:
    """At the interpreter's exit what was submitted is run to its end, as concurrent.futures does."""
    for supervisor in list(_open):
        supervisor.close(cancel_pending=False, cancel_running=False)
    for supervisor in list(_open):
        supervisor.wait()


_default_lock = threading.Lock()
_default: list[JobExecutor] = []


def _leave_to_parent() -> None:
    """In a forked process: the executors there are run in the parent, and nothing here waits for them."""
    global _default_lock
    _default_lock = threading.Lock()
    _default.clear()
    for supervisor in _open:
        supervisor.leave_to_parent()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def enter_executor(find: Callable[[], JobExecutor]) -> contextvars.Token[_Entered | None]:
    """Let `find` give what `current_executor` gives from here on: it is called when first one is needed."""
    return _current.set(_Entered(os.getpid(), find))


def leave_executor(token: contextvars.Token[_Entered | None]) -> None:
    """Let what was before `enter_executor` count again; of no effect in another context than it was entered in."""
    with contextlib.suppress(ValueError):
        _current.reset(token)


def current_executor() -> JobExecutor:
    """The innermost `with JobExecutor(...)` around the caller; else one per process, made from the configuration.

    One that was entered before this process was forked does not count.
    """
    entered = _current.get()
    if entered is not None and entered.pid == os.getpid():
        return entered.find()
    with _default_lock:
        # One that a signal has ended is not replaced while the program ends: nothing is to start any more.
        if not _default or (_default[0]._supervisor.closed.is_set() and signal_watch.ended_by is None):
            config = load_config()
            _default[:] = [JobExecutor(config.executor.max_workers, config=config)]
        return _default[0]
