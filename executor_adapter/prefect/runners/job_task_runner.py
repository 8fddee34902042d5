"""JobTaskRunner: runs each task that a flow submits as one Job, by a change of one line in the flow.

    @flow(task_runner=JobTaskRunner(max_workers=4, pool="process"))

Each task's engine stays in a thread of this process; only the function goes to a pool.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, Self, Unpack

from prefect.client.schemas.objects import RunInput
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor import JobExecutor, enter_executor, leave_executor
from executor_adapter.job import PoolName, SharedJobOptions, check_max_workers
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.options.job_options import check_defaults, options_of
from executor_adapter.prefect.runners.engine_threads import EngineThreads, is_interruption


class JobTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Runs submitted tasks as jobs of its own executor; a `with JobExecutor(...)` inside the flow takes precedence.

    `max_workers`: how many attempts may run at once, as for JobExecutor.
    `initializer`, `initargs`: called in each worker process before its first job.
    `pool`: where functions run: "auto" (a coroutine function as a coroutine, any other in a thread), "thread",
    "coroutine", "process", "ssh", "dask" or "ray". `address`: with "dask" and "ray", the cluster's; by default the
    setting's. `job_fields`: further fields of `Job`, for all tasks that do not set them.

    A plain task's `timeout_seconds` becomes the job's `max_runtime`, which is a hard limit; its `retries` follow the
    executor's rules and survive crashes. `job_options` sets more fields for one task; a job task keeps its own options.

    When the flow ends, running jobs are waited for and waiting jobs are cancelled, as in Prefect's
    ThreadPoolTaskRunner. Then the runner waits until the server has recorded how each task ended, as long as the server
    makes progress; after 30 s without any it is given up. What it has not recorded by then is left in the outbox (see
    PrefectMirror), and a warning is logged. When the flow is interrupted, as by a signal, all jobs end at once, and the
    server gets only seconds.

    Raises:
        TypeError: a field is unknown, or belongs to each task.
        InvalidJobError: a value can never work.
    """

    def __init__(
        self,
        max_workers: int | Mapping[str, int] | None = None,
        pool: PoolName = "auto",
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        address: str | None = None,
        **job_fields: Unpack[SharedJobOptions],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_max_workers(max_workers, or_none=", or None for the defaults")
        self.job_fields: dict[str, Any] = {"pool": pool, **job_fields}
        check_defaults(self.job_fields)
        if address is not None and pool not in ("dask", "ray"):
            raise InvalidJobError(
                f"address={address!r} is for pool='dask' and 'ray', and pool={pool!r}: give one of these, or no address"
            )
        self._options: dict[str, Any] = {
            "max_workers": max_workers,
            "initializer": initializer,
            "initargs": initargs,
            "address": address,
        }
        self._run: _EnteredRunner | None = None

    def duplicate(self) -> Self:
        """Return a runner with the same settings for another flow run."""
        return copy.copy(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobTaskRunner):
            return NotImplemented
        return (self._options, self.job_fields) == (other._options, other.job_fields)

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle a runner that is not entered: threads, locks and jobs stay here."""
        base = type(self).__new__(type(self))
        super(JobTaskRunner, base).__init__()  # type: ignore[no-untyped-call]
        return vars(self) | vars(base) | {"_run": None}

    def submit(
        self,
        task: Any,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectFuture[Any]:
        """Submit a plain task or a job task; its task run is Pending from now on.

        Raises:
            RuntimeError: the runner is not entered, or its flow run has ended.
            InvalidJobError: The task can never be a job; the message names the reason.
        """
        if self.threads is None:
            raise RuntimeError("Task runner is not started: submit inside a flow, or in its `with` block")
        return self.threads.submit(JobRun(task, options_of(task, self.job_fields)), parameters, wait_for, dependencies)

    @property
    def threads(self) -> EngineThreads | None:
        """The engines of the flow run; None where the runner is not entered."""
        return None if self._run is None else self._run.threads

    def cancel_all(self) -> None:
        """Cancel all jobs, running ones too, and start no further one; return at once."""
        if self.threads is not None:
            self.threads.end_early()

    def __enter__(self) -> Self:
        super().__enter__()
        self._run = _EnteredRunner(**self._options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, self._run = self._run, None
        assert run is not None, "a runner is left once"
        try:
            run.end(interrupted=is_interruption(kind))
        finally:
            super().__exit__(kind, error, traceback)


class _EnteredRunner:
    """Holds the threads and the executor of a JobTaskRunner while it is entered. The executor is made when needed."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.threads = EngineThreads()
        self._executor: JobExecutor | None = None
        self._lock = threading.Lock()
        self._entered: Token[Any] = enter_executor(self._find_executor)

    def _find_executor(self) -> JobExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = JobExecutor(**self._options)
            return self._executor

    def end(self, *, interrupted: bool) -> None:
        """End the jobs, then the workers, then wait for the server."""
        leave_executor(self._entered)
        self.threads.end_early(cancel_running=interrupted)
        self.threads.join(interrupted=interrupted, between=functools.partial(self._end_workers, interrupted))

    def _end_workers(self, at_once: bool) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True, timeout=0 if at_once else None)
