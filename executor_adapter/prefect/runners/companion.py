"""The task runner that runs a flow's job tasks beside the flow's own, which knows nothing of them."""

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
from executor_adapter.prefect.cancellation.watcher import watch_flow_run
from executor_adapter.prefect.child.task_run_context import NoTaskRunner, is_worker
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.waiting import slot_lent
from executor_adapter.prefect.mirror import flow_run_mirrors
from executor_adapter.prefect.mirror.timeouts import remaining_close_seconds
from executor_adapter.prefect.reporting.events import current_flow_run
from executor_adapter.prefect.runners.engine_threads import EngineThreads
from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner

_lock = threading.Lock()


class CompanionTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Runs job tasks in engine threads; leaves all other tasks to the flow's own runner.

    It lives as long as that runner is entered. When the flow ends, jobs that run are waited for and the others are
    cancelled, as Prefect's ThreadPoolTaskRunner does; when it ends by a signal or its like, all are cancelled.
    """

    def __init__(self, beside: TaskRunner[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.beside = beside
        self._threads = EngineThreads()

    def duplicate(self) -> Self:
        """A runner for another flow run."""
        return type(self)(self.beside.duplicate())

    def submit(
        self,
        task: Any,
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectFuture[Any]:
        """Submit a job task here, any other to the flow's own runner."""
        from executor_adapter.prefect.job_task import JobTask

        if isinstance(task, JobTask):
            return self._threads.submit(JobRun(task, task.job_options), parameters, wait_for, dependencies)
        return self.beside.submit(task, parameters, wait_for, dependencies)  # type: ignore[no-any-return]

    def watch(self) -> None:
        """Hear of the cancel of the flow run around the caller, as the first job submitted there would have it."""
        self._threads.watch()

    def close(self, cancel_others: Callable[[], object]) -> None:
        """End job tasks as the class says, around `cancel_others`, which does so with the flow's own runner's tasks."""
        # Waiting jobs first: a task of the other runner may wait for one. Then the others: a job may wait for them.
        interrupted = self._is_interrupted()
        self._threads.end_early(cancel_running=interrupted)
        try:
            cancel_others()
        finally:
            self._threads.join(hurry=interrupted)

    @staticmethod
    def _is_interrupted() -> bool:
        """Whether the flow run ends by a signal or its like. Its own exceptions do not come so far, and an Exception
        seen here is one that the flow's caller handles."""
        error = sys.exc_info()[1]
        return error is not None and not isinstance(error, Exception)


class _CancelAll:
    """Stands for `cancel_all` of a flow's task runner, which that calls when its flow run ends.

    It is the one public method of Prefect's runners that is called then: `__exit__` is looked up on the class.
    """

    def __init__(self, companion: CompanionTaskRunner, cancel_all: Callable[[], object]) -> None:
        self.companion = companion
        self._cancel_all = cancel_all

    def __call__(self) -> None:
        self.companion.close(self._cancel_all)


def companion_of(task_runner: TaskRunner[Any]) -> CompanionTaskRunner | JobTaskRunner:
    """The runner for job tasks beside `task_runner`, which is entered; made when first asked for. A JobTaskRunner needs
    none.

    Raises:
        InvalidJobError: that runner has no way to say that its flow run ends.
    """
    if isinstance(task_runner, CompanionTaskRunner | JobTaskRunner):
        return task_runner
    with _lock:
        cancel_all = getattr(task_runner, "cancel_all", None)
        if isinstance(cancel_all, _CancelAll):
            return cancel_all.companion
        if cancel_all is None:
            name = type(task_runner).__name__
            raise InvalidJobError(f"a job task cannot be submitted under {name}: use ThreadPoolTaskRunner, or call it")
        companion = CompanionTaskRunner(task_runner).__enter__()
        task_runner.cancel_all = _CancelAll(companion, cancel_all)  # type: ignore[attr-defined]
        return companion


class JobTaskCall:
    """Around the call of a job task, in a flow or not: `on_cancel()` is called as in `watching`, and the job that the
    call is made in lends its slot.

    In a worker process, and under a runner that cannot tell when its flow run is over, nobody else waits until the
    server knows how the task run ended: there, the last of the calls that live at once does.
    """

    def __init__(self, on_cancel: Callable[[], object]) -> None:
        self._on_cancel = on_cancel

    def __enter__(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(slot_lent())
            stack.enter_context(watching(self._on_cancel))
            self._around = stack.pop_all()
        flow_run = current_flow_run()
        self._ends, self._flow_run_id = _end_is_untold(), flow_run.id if flow_run is not None else None
        if self._ends:
            with _lock:
                _calls[self._flow_run_id] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._around:
            if self._is_last():
                flow_run_mirrors.close(self._flow_run_id, timeout=_patience(kind))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._around:
            if self._is_last():
                await asyncio.to_thread(flow_run_mirrors.close, self._flow_run_id, timeout=_patience(kind))

    def _is_last(self) -> bool:
        if not self._ends:
            return False
        with _lock:
            _calls[self._flow_run_id] -= 1
            last = not _calls[self._flow_run_id]
            if last:
                del _calls[self._flow_run_id]
        return last


_calls: Counter[UUID | None] = Counter()
"""Those that live, by flow run, where somebody has to wait for the server."""


def _end_is_untold() -> bool:
    """Whether nobody tells when the flow run around the caller is over, or this process."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner):
        return is_worker()
    return not isinstance(context.task_runner, CompanionTaskRunner) and not hasattr(context.task_runner, "cancel_all")


def _patience(kind: type[BaseException] | None) -> float | None:
    """Seconds for the server: few where a signal or its like ends the process."""
    interrupted = kind is not None and not issubclass(kind, Exception)
    return remaining_close_seconds(time.monotonic()) if interrupted else None


@contextlib.contextmanager
def watching(on_cancel: Callable[[], object]) -> Iterator[None]:
    """Have `on_cancel()` called when the flow run around the block is cancelled; see `watch_flow_run`.

    For jobs that no task runner runs: its own runner is made to tell when the flow run is over.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or isinstance(context.task_runner, NoTaskRunner):
        yield
        return
    with contextlib.suppress(InvalidJobError):  # one that cannot tell
        companion_of(context.task_runner).watch()
    with contextlib.closing(watch_flow_run(context.flow_run.id, on_cancel)):
        yield


def flow_run_context_for_jobs() -> FlowRunContext | None:
    """The flow run context around the caller, with the companion for its task runner; None where there is none, or
    where that only schedules: a PrefectTaskRunner leaves all to task workers."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner | PrefectTaskRunner):
        return None
    return context.model_copy(update={"task_runner": companion_of(context.task_runner)})
