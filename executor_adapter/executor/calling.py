"""The methods of an executor that take a function instead of a Job, and give its return type back.

future = executor.call(area, 3, 4)                                       # JobFuture[float]
future = executor.options(pool="process", max_runtime=60).call(area, 3, 4)
results = executor.map(area, [1, 2], [3, 4])                             # Iterator[JobResult[float]]
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar, Unpack, overload

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.futures_executor import FuturesExecutor
from executor_adapter.executor.mapping import check_shared_fields
from executor_adapter.job import Job, JobOptions, JobResult, MapOptions, RepeatedJobOptions
from executor_adapter.supervision import JobFuture

P = ParamSpec("P")
R = TypeVar("R")


class MapRequest(NamedTuple):
    """What `map` was called with, but for the fields of its jobs."""

    function: Callable[..., Any] | str
    iterables: tuple[Iterable[Any], ...]
    ordered: bool
    window: int | None
    progress: bool


MapAll = Callable[[MapRequest, Mapping[str, Any]], Iterator[JobResult]]
"""Does what `map` does, with all fields of its jobs."""

OF_ONE_CALL = ("function", "args", "kwargs", "job_id")
"""The fields of a Job that come from the call itself."""


class JobCaller(abc.ABC):
    """Runs functions as jobs. A type checker sees the function's parameters, and the type that it returns."""

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
        return self._submit(Job(function=function, args=args, kwargs=kwargs, **self._call_options()))

    @overload
    def map(
        self,
        function: Callable[..., Coroutine[Any, Any, R]],
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
        progress: bool = False,
        **job_fields: Unpack[MapOptions],
    ) -> Iterator[JobResult[R]]: ...

    @overload
    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
        progress: bool = False,
        **job_fields: Unpack[MapOptions],
    ) -> Iterator[JobResult[R]]: ...

    @overload
    def map(
        self,
        function: str,
        *iterables: Iterable[Any],
        ordered: bool = True,
        window: int | None = None,
        progress: bool = False,
        **job_fields: Unpack[MapOptions],
    ) -> Iterator[JobResult]: ...

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
        request = MapRequest(function, iterables, ordered, window, progress)
        return self._map(request, {**self._call_options(), **job_fields})

    def options(self, **options: Unpack[JobOptions]) -> JobCaller:
        """Return an object whose `call`, `map` and `as_executor` give their jobs these fields of `Job`.

        Raises:
            InvalidJobError: A field is unknown or belongs to a single call, or its value could never work.
        """
        return _CallerWithOptions(self._submit, self._map, {**self._call_options(), **_checked(options)})

    def as_executor(self, **options: Unpack[RepeatedJobOptions]) -> FuturesExecutor:
        """Return a `concurrent.futures.Executor` that runs each call as a job with these fields of `Job`.

        It is for code that takes such an executor, as `loop.run_in_executor` does. That code expects one call of each
        function, so nothing is retried unless `retry_attempts` or `retry` is given.

        Raises:
            InvalidJobError: A field is unknown or belongs to a single call, or its value could never work.
        """
        fields = {**self._call_options(), **_checked(options)}
        check_shared_fields(fields)
        if not fields.keys() & {"retry", "retry_attempts"}:
            fields["retry_attempts"] = 0
        return FuturesExecutor(self._submit, fields)

    @abc.abstractmethod
    def _submit(self, job: Job) -> JobFuture:
        """Submit a job; see `JobExecutor.submit`."""

    @abc.abstractmethod
    def _map(self, request: MapRequest, fields: Mapping[str, Any]) -> Iterator[JobResult]:
        """Do what `map` does, with all fields of its jobs."""

    def _call_options(self) -> Mapping[str, Any]:
        return {}


class _CallerWithOptions(JobCaller):
    """Gives the jobs of another caller fields of their own."""

    def __init__(self, submit: Callable[[Job], JobFuture], map_all: MapAll, options: Mapping[str, Any]) -> None:
        self._submit_job = submit
        self._map_all = map_all
        self._options = options

    def _call_options(self) -> Mapping[str, Any]:
        return self._options

    def _submit(self, job: Job) -> JobFuture:
        return self._submit_job(job)

    def _map(self, request: MapRequest, fields: Mapping[str, Any]) -> Iterator[JobResult]:
        return self._map_all(request, fields)


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return fields that many jobs can share, after making a job with them that is never run."""
    for name in OF_ONE_CALL:
        if name in options:
            raise InvalidJobError(
                f"{name}={options[name]!r} belongs to a single call: pass it to `call`, or make a Job"
            )
    Job(function=_checked, **options)
    return options
