"""Runs the job tasks of a flow beside the flow's own task runner, which handles all other tasks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from prefect.client.schemas.objects import RunInput
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import PrefectTaskRunner, TaskRunner

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.pools import lend_slot
from executor_adapter.prefect.cancellation.watcher import watch_flow_run
from executor_adapter.prefect.child.no_task_runner import NoTaskRunner
from executor_adapter.prefect.child.task_run_context import is_worker
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.mirror import runs
from executor_adapter.prefect.mirror.events import current_flow_run_id
from executor_adapter.prefect.mirror.mirror import remaining_close_seconds
from executor_adapter.prefect.options.plain_task import is_job_task
from executor_adapter.prefect.runners.engine_threads import EngineThreads
from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner

_lock = threading.Lock()


class CompanionTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Runs job tasks in engine threads and leaves all other tasks to the flow's own runner.

    It lives as long as that runner is entered. When the flow ends, running jobs are waited for and waiting jobs are
    cancelled, as Prefect's ThreadPoolTaskRunner does; when an interruption, as by a signal, ends it, all are cancelled.
    """

    def __init__(self, flow_runner: TaskRunner[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow_runner = flow_runner
        self._threads = EngineThreads()

    def duplicate(self) -> Self:
        """Return a companion of the same kind of runner for another flow run."""
        return type(self)(self.flow_runner.duplicate())

    def submit(
        self,
        task: Any,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectFuture[Any]:
        """Submit a job task here, and any other task to the flow's own runner."""
        if is_job_task(task):
            return self._threads.submit(JobRun(task, task.job_options), parameters, wait_for, dependencies)
        return self.flow_runner.submit(task, parameters, wait_for, dependencies)  # type: ignore[no-any-return]

    def watch(self) -> None:
        """Cancel the jobs when the flow run around the caller is cancelled; the first submitted job does this too."""
        self._threads.watch()

    def close(self, cancel_others: Callable[[], object]) -> None:
        """End the job tasks, see the class; `cancel_others` ends the tasks of the flow's own runner."""
        # Waiting jobs end first, because tasks of the other runner may wait for them. Running jobs are joined last,
        # because they may wait for tasks of the other runner.
        interrupted = self._is_interrupted()
        self._threads.end_early(cancel_running=interrupted)
        try:
            cancel_others()
        finally:
            self._threads.join(interrupted=interrupted)

    @staticmethod
    def _is_interrupted() -> bool:
        """Return whether a signal or another BaseException ends the flow run.

        The flow's own exceptions have been handled before; an Exception seen here is one that the flow's caller
        handles.
        """
        error = sys.exc_info()[1]
        return error is not None and not isinstance(error, Exception)


class _CancelAll:
    """Replaces `cancel_all` of a flow's task runner, which the runner calls when its flow run ends.

    No other public method can be replaced for this: `__exit__` is looked up on the class, not on the object.
    """

    def __init__(self, companion: CompanionTaskRunner, cancel_all: Callable[[], object]) -> None:
        self.companion = companion
        self._cancel_all = cancel_all

    def __call__(self) -> None:
        self.companion.close(self._cancel_all)


def companion_of(task_runner: TaskRunner[Any]) -> CompanionTaskRunner | JobTaskRunner:
    """Return the runner for job tasks beside `task_runner`, which must be entered; it is made on the first call.

    A JobTaskRunner needs no companion and is returned itself.

    Raises:
        InvalidJobError: `task_runner` calls nothing when its flow run ends.
    """
    if isinstance(task_runner, CompanionTaskRunner | JobTaskRunner):
        return task_runner
    with _lock:
        cancel_all = getattr(task_runner, "cancel_all", None)
        if isinstance(cancel_all, _CancelAll):
            return cancel_all.companion
        if cancel_all is None:
            name = type(task_runner).__name__
            raise InvalidJobError(
                f"a job task cannot be submitted under {name}: use ThreadPoolTaskRunner, or call the task"
            )
        companion = CompanionTaskRunner(task_runner).__enter__()
        task_runner.cancel_all = _CancelAll(companion, cancel_all)  # type: ignore[attr-defined]
        return companion


class JobTaskCall:
    """Context manager around a direct job-task call: watches for cancellation and lends the caller's slot.

    Elsewhere the flow's task runner waits until the server has recorded how the task run ended. In a worker process,
    and under a runner that is not notified of the flow run's end, the last of the concurrent calls waits for it.
    """

    def __init__(self, on_cancel: Callable[[], object]) -> None:
        self._on_cancel = on_cancel

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(lend_slot())
            stack.enter_context(watch_for_cancel(self._on_cancel))
            self._around = stack.pop_all()
        self._waits_for_server = _must_wait_for_server()
        self._flow_run_id = current_flow_run_id()
        if self._waits_for_server:
            with _lock:
                _calls[self._flow_run_id] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._around:
            if self._finish_call():
                _wait_for_server(self._flow_run_id, kind)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._around:
            if self._finish_call():
                await asyncio.to_thread(_wait_for_server, self._flow_run_id, kind)

    def _finish_call(self) -> bool:
        """Remove the call from those in progress; return whether it has to wait for the server."""
        if not self._waits_for_server:
            return False
        with _lock:
            _calls[self._flow_run_id] -= 1
            last = not _calls[self._flow_run_id]
            if last:
                del _calls[self._flow_run_id]
        return last


_calls: Counter[UUID | None] = Counter()
"""The number of calls in progress that have to wait for the server, by flow run."""


def _must_wait_for_server() -> bool:
    """Return whether no task runner is notified of the end of the caller's flow run, so that the call must wait."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner):
        return is_worker()
    return not isinstance(context.task_runner, CompanionTaskRunner) and not hasattr(context.task_runner, "cancel_all")


def _wait_for_server(flow_run_id: UUID | None, kind: type[BaseException] | None) -> None:
    """Wait for the server; only for a few seconds if a signal or another BaseException ends the process."""
    if kind is not None and not issubclass(kind, Exception):
        runs.close(flow_run_id, timeout=remaining_close_seconds(time.monotonic()))
    else:
        runs.drain(flow_run_id)


@contextlib.contextmanager
def watch_for_cancel(on_cancel: Callable[[], object]) -> Iterator[None]:
    """Call `on_cancel()` when the flow run around the block is cancelled; see `watch_flow_run`.

    This is for jobs that no task runner runs. The flow's own runner gets a companion, which notices when the flow run
    ends.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or isinstance(context.task_runner, NoTaskRunner):
        yield
        return
    with contextlib.suppress(InvalidJobError):  # This runner calls nothing when its flow run ends.
        companion_of(context.task_runner).watch()
    with contextlib.closing(watch_flow_run(context.flow_run.id, on_cancel)):
        yield


def flow_run_context_for_jobs() -> FlowRunContext | None:
    """Return the flow run context around the caller with the companion as its task runner.

    Returns None if there is no such context, or if its runner only schedules: a PrefectTaskRunner leaves all tasks to
    task workers.
    """
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner | PrefectTaskRunner):
        return None
    return context.model_copy(update={"task_runner": companion_of(context.task_runner)})
