"""Runs the job tasks of a flow beside the flow's own task runner, which handles all other tasks."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import PrefectTaskRunner, TaskRunner

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor import signal_watch
from executor_adapter.pools.in_process.slot_loan import lend_slot
from executor_adapter.prefect.cancellation.watcher import watch_flow_run
from executor_adapter.prefect.child.contexts import NoTaskRunner
from executor_adapter.prefect.child.task_run_context import is_worker
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.run import result_of_job
from executor_adapter.prefect.mirror import runs
from executor_adapter.prefect.mirror.events import current_flow_run_id
from executor_adapter.prefect.mirror.mirror import remaining_close_seconds
from executor_adapter.prefect.options.job_options import is_job_task
from executor_adapter.prefect.runners.engine_threads import EngineThreads, is_interruption
from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner

_lock = threading.Lock()


class CompanionTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Runs job tasks in engine threads and leaves all other tasks to the flow's own runner.

    It lives as long as that runner is entered. When the flow ends, running jobs are waited for and waiting jobs are
    cancelled, as Prefect's ThreadPoolTaskRunner does; when an interruption, as by a signal, ends it, all are cancelled.
    """

    def __init__(self, flow_runner: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow_runner = flow_runner
        self.threads = EngineThreads()
        self._cancel_others: Callable[[], object] = flow_runner.cancel_all

    def duplicate(self) -> Self:
        """Return a companion of the same kind of runner for another flow run."""
        return type(self)(self.flow_runner.duplicate())

    def submit(self, task: Any, *args: Any, **kwargs: Any) -> PrefectFuture[Any]:
        """Submit a job task here, and any other task to the flow's own runner."""
        if is_job_task(task):
            return self.threads.submit(JobRun(task, task.job_options), *args, **kwargs)
        return self.flow_runner.submit(task, *args, **kwargs)  # type: ignore[no-any-return]

    def cancel_all(self) -> None:
        """End the job tasks, see the class, and the tasks of the flow's own runner; it replaces that one's method."""
        # Waiting jobs end first, because tasks of the other runner may wait for them. Running jobs are joined last,
        # because they may wait for tasks of the other runner.
        # The flow's own exceptions have been handled before; an Exception seen here is one that its caller handles.
        interrupted = is_interruption(sys.exc_info()[0])
        self.threads.end_early(cancel_running=interrupted)
        try:
            self._cancel_others()
        finally:
            self.threads.join(interrupted=interrupted)


def companion_of(task_runner: Any) -> CompanionTaskRunner | JobTaskRunner:
    """Return the runner for job tasks beside `task_runner`, which must be entered; it is made on the first call.

    A JobTaskRunner needs no companion and is returned itself.

    Raises:
        InvalidJobError: `task_runner` calls nothing when its flow run ends.
    """
    if isinstance(task_runner, CompanionTaskRunner | JobTaskRunner):
        return task_runner
    with _lock:
        cancel_all = getattr(task_runner, "cancel_all", None)
        known = getattr(cancel_all, "__self__", None)
        if isinstance(known, CompanionTaskRunner):
            return known
        if cancel_all is None:
            name = type(task_runner).__name__
            raise InvalidJobError(
                f"a job task cannot be submitted under {name}: use ThreadPoolTaskRunner, or call the task"
            )
        companion = CompanionTaskRunner(task_runner).__enter__()
        # Called when the flow run ends. No other public method can be replaced for this: `__exit__` is looked up on
        # the class, not on the object.
        task_runner.cancel_all = companion.cancel_all
        return companion


@contextlib.contextmanager
def watch_for_cancel(on_cancel: Callable[[], object]) -> Iterator[None]:
    """Call `on_cancel()` when the flow run around the block is cancelled; see `watch_flow_run`.

    This is for jobs that no task runner runs. The flow's own runner gets a companion, which notices when the flow run
    ends. A program that runs jobs goes on, whatever signal it has got before.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or isinstance(context.task_runner, NoTaskRunner):
        if not is_worker():
            signal_watch.arm()
        yield
        return
    if hasattr(context.task_runner, "cancel_all") and (threads := companion_of(context.task_runner).threads):
        threads.watch()
    with contextlib.closing(watch_flow_run(context.flow_run.id, on_cancel)):
        yield


# --- direct calls ---


def call_job_task(job_run: JobRun, run: Callable[[], Any]) -> Any:
    """Run the task of `job_run` on the caller's thread, by `run`, and return what that returns."""
    with lend_slot(), watch_for_cancel(job_run.end_early):
        return _run_and_record(run)


async def await_job_task(job_run: JobRun, run: Callable[[], Any]) -> Any:
    """Run the task of `job_run` on a thread of its own, by `run`, and await what that returns.

    Unlike those that are submitted it passes no gate, because one whose caller is cancelled has to end at once.
    Cancelling the caller ends the job, and returns once that is recorded: at most INTERRUPT_TIMEOUT later.
    """
    with lend_slot(), watch_for_cancel(job_run.end_early):
        return await result_of_job(functools.partial(_run_and_record, run), job_run)


def _run_and_record(run: Callable[[], Any]) -> Any:
    """Call `run()`, and wait until the server has recorded how the task run ended where no task runner does so.

    That is in a worker process, and under a runner that is not notified of the flow run's end. If a signal or another
    BaseException ends the process, the server gets only a few seconds.
    """
    if not _must_wait_for_server():
        return run()
    flow_run_id = current_flow_run_id()
    try:
        value = run()
    except Exception:
        runs.drain(flow_run_id)
        raise
    except BaseException:
        runs.close(flow_run_id, timeout=remaining_close_seconds(time.monotonic()))
        raise
    runs.drain(flow_run_id)
    return value


def _must_wait_for_server() -> bool:
    """Return whether no task runner is notified of the end of the caller's flow run, so that the call must wait."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner):
        return is_worker()
    return not hasattr(context.task_runner, "cancel_all")


# --- submitted calls ---


def flow_run_context_for_jobs() -> FlowRunContext | None:
    """Return the flow run context around the caller with the companion as its task runner.

    Returns None if there is no such context, or if its runner only schedules: a PrefectTaskRunner leaves all tasks to
    task workers.
    """
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, NoTaskRunner | PrefectTaskRunner):
        return None
    return context.model_copy(update={"task_runner": companion_of(context.task_runner)})
