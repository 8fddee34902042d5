"""JobTaskRunner: each task that a flow submits is one Job, by changing one line of the flow.

    @flow(task_runner=JobTaskRunner(max_workers=4, pool="process"))

Prefect's engine stays here, in a thread a task; the function alone goes to a pool.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from contextvars import Token
from types import TracebackType
from typing import Any, Self, TypeVar

from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner
from prefect.tasks import Task

from executor_adapter.config import load_config
from executor_adapter.executor.current import enter_executor, leave_executor
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.validation import check_count
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.options.plain_task import check_defaults, options_of
from executor_adapter.prefect.runners.engine_threads import EngineThreads

Runner = TypeVar("Runner", bound="JobTaskRunner")


class JobTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Runs submitted tasks as jobs of an executor of its own; a `with JobExecutor(...)` inside the flow comes first.

    `max_workers`: at most so many attempts at once; default: the configuration's `executor.max_workers`.
    `initializer`, `initargs`: called in each worker process before its first job.
    `pool`: where functions run: "auto" (a coroutine function as a coroutine, any other in a thread), "thread",
    "coroutine" or "process". `job_fields`: further fields of `Job`, for all tasks that do not say otherwise.

    A plain task's `timeout_seconds` is the job's `max_runtime`, and hard; its `retries` are made by the executor's
    rules, after crashes too. `job_options` says more of one task; a job task keeps to its own options.

    When the flow ends, jobs that run are waited for and those that wait are cancelled, as by Prefect's
    ThreadPoolTaskRunner; then the server is waited for until it has recorded how each task ended, as long as it shows
    any progress. What it does not have then is spooled (see PrefectMirror), and a warning says so. When the flow is
    interrupted, by a signal or its like, all end at once, and the server has seconds.

    Raises:
        TypeError: a field is unknown, or each task's own.
        InvalidJobError: a value is none that could ever work.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        pool: str = "auto",
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **job_fields: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if max_workers is not None:
            check_count("max_workers", max_workers, "leaves no worker")
        self.job_fields = {"pool": pool, **job_fields}
        check_defaults(self.job_fields)
        self._options: dict[str, Any] = {"max_workers": max_workers, "initializer": initializer, "initargs": initargs}
        self._run: _RunnerOfOneFlow | None = None

    def duplicate(self) -> Self:
        """A runner for another flow run."""
        return _made_as(type(self), self._said())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobTaskRunner):
            return NotImplemented
        return (self._options, self.job_fields) == (other._options, other.job_fields)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is not entered, wherever it arrives: threads, locks and jobs stay here."""
        return _made_as, (type(self), self._said())

    def _said(self) -> dict[str, Any]:
        """What it was made with, and what a subclass has added."""
        others = vars(_made_as(type(self), {}))
        return {name: value for name, value in vars(self).items() if name not in others}

    def submit(
        self,
        task: Any,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectFuture[Any]:
        """Submit a task, plain or a job task: it is Pending from now on.

        Raises:
            RuntimeError: outside the flow run, or once that is over.
            InvalidJobError: the task can never be a job; the message says why.
        """
        if self._run is None:
            raise RuntimeError("Task runner is not started: submit inside a flow, or in its `with` block")
        return self._run.submit(task, self.job_fields, parameters, wait_for, dependencies)

    def watch(self) -> None:
        """Hear of the cancel of the flow run around the caller, as the first task submitted there would have it."""
        if self._run is not None:
            self._run.threads.watch()

    def cancel_all(self) -> None:
        """End all jobs, those that run too, and begin no further one; returns at once."""
        if self._run is not None:
            self._run.threads.cancel()

    def __enter__(self) -> Self:
        super().__enter__()
        self._run = _RunnerOfOneFlow(**self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, self._run = self._run, None
        assert run is not None, "it is left once"
        try:
            run.end(interrupted=kind is not None and not issubclass(kind, Exception))
        finally:
            super().__exit__(kind, error, traceback)


def _made_as(kind: type[Runner], said: dict[str, Any]) -> Runner:
    """A runner of that class, not entered, whatever the arguments of its `__init__`."""
    runner = kind.__new__(kind)
    super(JobTaskRunner, runner).__init__()  # type: ignore[no-untyped-call]
    vars(runner).update(said, _run=None)
    return runner


class _RunnerOfOneFlow:
    """What a JobTaskRunner holds while it is entered. The executor is made when it is first asked for."""

    def __init__(self, *, max_workers: int | None, **options: Any) -> None:
        self._max_workers = max_workers
        self._options = options
        self.threads = EngineThreads()
        self._executor: JobExecutor | None = None
        self._lock = threading.Lock()
        self._entered: Token[Any] = enter_executor(self._find_executor)

    def _find_executor(self) -> JobExecutor:
        with self._lock:
            if self._executor is None:
                config = load_config()
                max_workers = self._max_workers or config.executor.max_workers
                self._executor = JobExecutor(max_workers, config=config, **self._options)
            return self._executor

    def submit(
        self,
        task: Task[..., Any],
        defaults: dict[str, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None,
        dependencies: dict[str, set[RunInput]] | None,
    ) -> PrefectFuture[Any]:
        current_executor()  # made by the flow's thread, if that is the main one: only there it can hear signals
        job_run = JobRun(task, options_of(task, defaults))
        return self.threads.submit(job_run, parameters, wait_for, dependencies)

    def end(self, *, interrupted: bool) -> None:
        """Jobs first, then workers, then what the server knows."""
        leave_executor(self._entered)
        self.threads.end_early(cancel_running=interrupted)
        self.threads.join(hurry=interrupted, meanwhile=functools.partial(self._end_workers, interrupted))

    def _end_workers(self, at_once: bool) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True, timeout=0 if at_once else None)
