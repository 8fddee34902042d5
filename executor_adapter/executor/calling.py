"""The methods of an executor that take a function instead of a Job, and give its return type back.

future = executor.call(area, 3, 4)                                       # JobFuture[float]
future = executor.options(pool="process", max_runtime=60).call(area, 3, 4)
results = executor.map(area, [1, 2], [3, 4])                             # Iterator[JobResult[float]]
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, ParamSpec, TypeVar, Unpack, cast, overload

from executor_adapter.exceptions import ExecutorClosedError, InvalidJobError
from executor_adapter.job import Job, JobOptions, JobResult, RepeatedJobOptions, function_reference
from executor_adapter.supervision.futures import JobFuture

P = ParamSpec("P")
R = TypeVar("R")

Submit = Callable[[Job], JobFuture]


OF_ONE_CALL = ("function", "args", "kwargs", "job_id")
"""The fields of a Job that come from the call itself."""


class MapOptions(RepeatedJobOptions, total=False):
    """The options of a `map`: its own, and the fields of a Job that its calls share."""

    ordered: bool
    window: int | None
    progress: bool
    kwargs: dict[str, Any]


class JobCaller:
    """Runs functions as jobs. A type checker sees the function's parameters, and the type that it returns."""

    _options: Mapping[str, Any] = {}
    """Fields of all its jobs."""

    def _runner(self) -> Any:
        """Return the JobExecutor that runs the jobs."""
        return self

    # For a coroutine function first: what its job returns is what the coroutine returns.

    @overload
    def call(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> JobFuture[R]: ...

    @overload
    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[R]: ...

    @overload
    def call(self, function: str, /, *args: Any, **kwargs: Any) -> JobFuture: ...

    def call(self, function: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> JobFuture:
        """Submit one call of `function`, a callable or "package.module:function", and return its future.

        Raises:
            InvalidJobError, JobSerializationError, ExecutorClosedError: As `JobExecutor.submit`.
        """
        job = Job(function=function, args=args, kwargs=kwargs, **self._options)
        future: JobFuture = self._runner().submit(job)
        return future

    @overload
    def map(
        self, function: Callable[..., Coroutine[Any, Any, R]], *iterables: Iterable[Any], **options: Unpack[MapOptions]
    ) -> Iterator[JobResult[R]]: ...

    @overload
    def map(
        self, function: Callable[..., R], *iterables: Iterable[Any], **options: Unpack[MapOptions]
    ) -> Iterator[JobResult[R]]: ...

    @overload
    def map(self, function: str, *iterables: Iterable[Any], **options: Unpack[MapOptions]) -> Iterator[JobResult]: ...

    def map(
        self,
        function: Callable[..., Any] | str,
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
        progress: bool = False,
        **job_fields: Any,
    ) -> Iterator[JobResult]:
        """Run one job for each tuple of arguments, and yield results in that order, or as they come (`ordered=False`).

        The iterables are read lazily: at most `window` jobs (default: four per worker) are live at once, so an
        endless iterable is fine. `job_fields` are fields of `Job` for all of them. A failed job yields a JobResult with
        its error and raises nothing. `progress` shows a progress bar on stderr.

        Raises:
            ValueError: No job with these fields can run, whatever its arguments; nothing is started.
        """
        fields, runner = {**self._options, **job_fields}, self._runner()
        run: Callable[..., Iterator[JobResult]] = runner._map  # noqa: SLF001  it is a JobCaller, too
        return run(fields, function, iterables, ordered=ordered, window=window, progress=progress)

    def options(self, **options: Unpack[JobOptions]) -> JobCaller:
        """Return an object whose `call`, `map` and `as_executor` give their jobs these fields of `Job`.

        Raises:
            InvalidJobError: A field is unknown or belongs to a single call, or its value could never work.
        """
        return _CallerWithOptions(self._runner(), {**self._options, **_checked(options)})

    def as_executor(self, **options: Unpack[RepeatedJobOptions]) -> FuturesExecutor:
        """Return a `concurrent.futures.Executor` that runs each call as a job with these fields of `Job`.

        It is for code that takes such an executor, as `loop.run_in_executor` does. That code expects one call of each
        function, so nothing is retried unless `retry_attempts` or `retry` is given.

        Raises:
            InvalidJobError: A field is unknown or belongs to a single call, or its value could never work.
        """
        fields = {**self._options, **_checked(options)}
        check_shared_fields(fields)
        if not fields.keys() & {"retry", "retry_attempts"}:
            fields["retry_attempts"] = 0
        return FuturesExecutor(self._runner().submit, fields)


class _CallerWithOptions(JobCaller):
    """Gives the jobs of an executor fields of their own."""

    def __init__(self, executor: JobCaller, options: Mapping[str, Any]) -> None:
        self._executor, self._options = executor, options

    def _runner(self) -> Any:
        return self._executor


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields that many jobs can share, after making a job with them that is never run."""
    for name in OF_ONE_CALL:
        if name in options:
            raise InvalidJobError(
                f"{name}={options[name]!r} belongs to a single call: pass it to `call`, or make a Job"
            )
    Job(function=_checked, **options)
    return options


class FuturesExecutor(Executor):
    """Runs each submitted call as a job of a JobExecutor, which stays open when this one is shut down.

    `JobExecutor.as_executor` makes it. Its futures are JobFutures: `cancel` ends a running call too, and a cancelled
    one raises JobCancelledError, which is a `concurrent.futures.CancelledError`.
    """

    def __init__(self, submit_job: Callable[[Job], JobFuture], fields: Mapping[str, Any]) -> None:
        self._submit_job = submit_job
        self._fields = fields
        self._lock = threading.Lock()
        self._closed = False
        self._futures: weakref.WeakSet[JobFuture] = weakref.WeakSet()
        """All that have not ended, which the JobExecutor keeps alive, and some that have."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[R]:
        """Submit a call and return its future; waits while the JobExecutor holds `max_pending` jobs.

        Raises:
            RuntimeError: This executor is shut down, or its JobExecutor is.
            InvalidJobError, JobSerializationError: As `JobExecutor.submit`.
        """
        self._refuse_if_closed()
        future: JobFuture[R] = self._submit_job(Job(function=fn, args=args, kwargs=kwargs, **self._fields))
        with self._lock:
            if not self._closed:
                self._futures.add(future)
                return future
        future.cancel()  # It was shut down meanwhile, and no longer waits for this future.
        raise _closed()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and wait for those that were submitted. The JobExecutor stays open.

        `wait=False` returns at once. `cancel_futures=True` cancels the calls that have not started.
        """
        with self._lock:
            self._closed = True
            futures = list(self._futures)
        if cancel_futures:
            for future in futures:
                if not future.running():
                    future.cancel()
        if wait:
            _wait_for(futures)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise _closed()


_wait_for = wait  # `shutdown` has an argument of that name.


def _closed() -> ExecutorClosedError:
    return ExecutorClosedError("cannot schedule new futures after shutdown: make another with as_executor()")


# --- map ---


def run_in_window(submit: Submit, jobs: Iterator[Job], window: int, *, ordered: bool) -> Iterator[JobResult]:
    """Yield the jobs' results, in the order of `jobs` or as they finish, with at most `window` jobs live at once.

    A consumer that stops early cancels those that are left.
    """
    futures: deque[Future[Any]] = deque()
    try:
        futures.extend(map(submit, itertools.islice(jobs, window)))
        while futures:
            done, _ = wait([futures[0]] if ordered else futures, return_when=FIRST_COMPLETED)
            for future in done:
                futures.remove(future)
            results = map(result_of, done)
            if ordered:  # The next job is submitted when its turn has come: it may never be asked for.
                yield from results
            futures.extend(map(submit, itertools.islice(jobs, len(done))))
            yield from results
    finally:
        for future in futures:
            future.cancel()


def with_progress(
    run: Callable[[Submit], Iterator[JobResult]],
    submit: Submit,
    function: Callable[..., Any] | str,
    iterables: Sequence[Iterable[Any]],
) -> Iterator[JobResult]:
    """Yield the results of `run`, with a progress bar that counts jobs as they end, whatever the order of the results.

    The bar's total is known where every iterable has a length.
    """
    from executor_adapter.monitoring import ProgressBar, ProgressCounts  # It needs rich, which few programs load.

    lengths = [len(each) for each in iterables if isinstance(each, Sized)]
    total = min(lengths) if len(lengths) == len(iterables) > 0 else None
    counted, yielded, failed = _CountedJobs(submit), 0, 0

    def read() -> ProgressCounts:
        # A result may be yielded a moment before its job is counted.
        return ProgressCounts(done=max(counted.done, yielded), failed=max(counted.failed, failed), total=total)

    name = function_reference(function).rpartition(":")[2]
    with ProgressBar(name, read), contextlib.closing(cast(Generator[JobResult, None, None], run(counted))) as results:
        for result in results:
            yielded, failed = yielded + 1, failed + (result.error is not None)
            yield result


class _CountedJobs:
    """Submits jobs, and counts those that end."""

    def __init__(self, submit: Submit) -> None:
        self.done = self.failed = 0
        self._submit = submit
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> JobFuture:
        future = self._submit(job)
        future.add_done_callback(lambda _: self._count(job))
        return future

    def _count(self, job: Job) -> None:
        with self._lock:
            self.done += 1
            self.failed += job.error_code is not None


def result_of(future: Future[Any]) -> JobResult:
    """Return how the job of a finished future ended."""
    assert isinstance(future, JobFuture)
    error = future.exception()
    job = future.job
    return JobResult(
        job_id=job.job_id,
        status=job.status,
        value=future.result() if error is None else None,
        error=error,
        error_code=job.error_code or getattr(error, "error_code", None),  # Of a result that cannot be loaded.
        attempts=job.attempts[-1].number if job.attempts else 0,
        duration=job.duration,
    )


def check_shared_fields(fields: Mapping[str, Any]) -> None:
    """Check that many jobs can share these fields.

    Raises:
        InvalidJobError: A field identifies a single job.
    """
    for name in ("args", "job_id"):
        if name in fields:
            raise InvalidJobError(f"{name}={fields[name]!r} cannot be the same for every job: leave it out")
    if (key := fields.get("dedupe_key")) is not None:
        raise InvalidJobError(
            f"dedupe_key={key!r} would merge all live jobs into one: leave it out, or submit jobs with different keys"
        )
