"""The results of many jobs, submitted a few at a time: in order, or as they finish."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, cast

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, JobResult, check_arguments, check_count, function_reference
from executor_adapter.pools import PoolKinds, check_job
from executor_adapter.supervision import JobFuture

Submit = Callable[[Job], JobFuture]


def in_order(submit: Submit, jobs: Iterator[Job], window: int) -> Iterator[JobResult]:
    """Yield the jobs' results in the order of `jobs`, with at most `window` jobs submitted and not yet yielded."""
    with _cancel_on_exit() as futures:
        futures.extend(submit(job) for job in itertools.islice(jobs, window))
        while futures:
            wait([futures[0]])
            yield result_of(futures.popleft())
            futures.extend(submit(job) for job in itertools.islice(jobs, 1))


def as_completed(submit: Submit, jobs: Iterator[Job], window: int) -> Iterator[JobResult]:
    """Yield the jobs' results as they finish, with at most `window` jobs submitted and not finished."""
    with _cancel_on_exit() as futures:
        futures.extend(submit(job) for job in itertools.islice(jobs, window))
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                futures.remove(future)
            futures.extend(submit(job) for job in itertools.islice(jobs, len(done)))
            yield from map(result_of, done)


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

    name = (function if isinstance(function, str) else function_reference(function)).rpartition(":")[2]
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
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Any]) -> None:
        with self._lock:
            self.done += 1
            self.failed += future.cancelled() or future.exception() is not None


@contextlib.contextmanager
def _cancel_on_exit() -> Iterator[deque[Future[Any]]]:
    """Hold futures, and cancel those that are left when the consumer of their results stops early."""
    futures: deque[Future[Any]] = deque()
    try:
        yield futures
    finally:
        for future in futures:
            future.cancel()


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
        error_code=job.error_code if error is not None else None,
        attempts=len(job.state.attempts or ()),
        duration=job.duration,
    )


def check_map(
    function: Callable[..., Any] | str,
    arguments: int,
    fields: Mapping[str, Any],
    *,
    window: int | None,
    fill_in: Callable[[Job], None],
    kind_of: PoolKinds,
    binds_arguments: bool,
) -> str:
    """Refuse a `map` none of whose jobs could run, by checking a job that is never run; return the name of its pool.

    `binds_arguments`: the function is called with the job's arguments as they are, so their number must fit.

    Raises:
        InvalidJobError: A field identifies a single job, or the pool cannot run such a job.
        ValueError: `window` is not a number of jobs.
    """
    check_count("window", window, "lets no job start", or_none=", or None for four a worker")
    check_shared_fields(fields)
    probe = Job(function=function, **fields)
    fill_in(probe)
    pool, _ = check_job(probe, kind_of)
    if binds_arguments:
        check_arguments(function, (None,) * arguments, probe.kwargs)
    return pool


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
