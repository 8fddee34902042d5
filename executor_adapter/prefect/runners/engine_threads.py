"""Submits task runs: each is Pending at once, and run by an engine in a thread of its own.

A thread costs little while it waits for a slot, and holding them all lets priorities decide, not the order of
submission. Attempts are bounded by the executor's `max_workers`, not here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, NoReturn
from uuid import UUID
from weakref import WeakKeyDictionary

from prefect.client.schemas.objects import RunInput, State, TaskRun
from prefect.futures import PrefectConcurrentFuture, PrefectFuture, PrefectWrappedFuture
from prefect.states import Pending

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.prefect.cancellation.watcher import FlowRunWatch, watch_flow_run
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.run import run_sync
from executor_adapter.prefect.engine.task_runs import create_task_run
from executor_adapter.prefect.engine.waiting import slot_lent, slot_loan
from executor_adapter.prefect.mirror import flow_run_mirrors
from executor_adapter.prefect.mirror.timeouts import remaining_close_seconds
from executor_adapter.prefect.reporting.events import current_flow_run, flush_events
from executor_adapter.prefect.runners.gate import Gate

MAX_THREADS = 32_768
"""Live task runs of one flow run: beyond it they queue. `run_jobs` needs no thread a job."""


class JobTaskFuture(PrefectWrappedFuture[Any, Future[Any]]):
    """The future of a submitted task: its state is known here, without asking the server.

    It waits as Prefect's own do, and is none of them: to those `as_completed` and `wait` listen in a way of their own,
    by which no job would be seen to wait.
    """

    def __init__(self, task_run: TaskRun, wrapped_future: Future[Any]) -> None:
        super().__init__(task_run.id, wrapped_future)
        self._task_run = task_run
        self._future: PrefectConcurrentFuture[Any] = PrefectConcurrentFuture(task_run.id, wrapped_future)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task run is over. A job that waits for it lends its slot meanwhile."""
        with self._slot_lent():
            self._future.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Its value, once it is over; a job that waits for it lends its slot meanwhile."""
        with self._slot_lent():
            return self._future.result(timeout, raise_on_failure)

    def _slot_lent(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.wrapped_future.done() else slot_lent()

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Have `fn(self)` called once the task run is over. Until then a job that asks for it is taken to wait for it,
        as in `as_completed`, and lends its slot."""
        loan = slot_loan.get()
        if loan is not None and not self.wrapped_future.done():
            loan.begin()
            self.wrapped_future.add_done_callback(lambda _: loan.end())
        super().add_done_callback(fn)

    @property
    def state(self) -> State[Any]:
        """The state that the engine set last."""
        return self._task_run.state or Pending()


def waits_for_a_slot_alone(options: Mapping[str, Any], task_run: TaskRun) -> bool:
    """Whether nothing else holds it back: no upstream task, no limit of a tag or tool, no clock that runs."""
    return (
        not task_run.tags
        and not any(task_run.task_inputs.values())
        and not any(options.get(name) for name in ("tool_name", "priority", "queue_timeout", "deadline", "dedupe_key"))
    )


class EngineThreads:
    """The threads of one flow run's submitted tasks."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="task-engine")
        self._live: dict[JobRun, Future[State[Any]]] = {}
        self._gates: WeakKeyDictionary[JobExecutor, Gate] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False
        self._watch: FlowRunWatch | None = None
        self._flow_run_id: UUID | None = None
        self._hurries_since: float | None = None

    def watch(self) -> None:
        """Hear of the cancel of the flow run around the caller, from now on until all is over."""
        flow_run = current_flow_run()
        with self._lock:
            if self._watch is not None or self._closed or flow_run is None:
                return
            self._flow_run_id = flow_run.id
            self._watch = watch_flow_run(flow_run.id, self.cancel, until_flow_ends=True)

    def cancel(self) -> None:
        """Begin nothing further, and end what runs."""
        self.end_early(cancel_running=True)

    def submit(
        self,
        job_run: JobRun,
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> JobTaskFuture:
        """Run the task of `job_run` in the caller's context variables; the future gives its final State.

        Raises:
            RuntimeError: the flow run is over.
            JobCancelledError: it was cancelled.
        """
        self.watch()
        if self._closed:
            self._refuse(job_run.task.name)
        task_run = create_task_run(job_run, parameters, wait_for, dependencies)
        future: Future[State[Any]] = Future()
        future.set_running_or_notify_cancel()  # cancelling it would leave the task run Pending for ever
        context = copy_context()
        context.run(slot_loan.set, None)  # an engine that waits for its inputs is no job that waits
        engine = functools.partial(
            context.run, run_sync, job_run, parameters, wait_for=wait_for, return_type="state", task_run=task_run
        )

        def set_out() -> None:
            self._threads.submit(self._run, job_run, engine, future)

        if not self._enlist(job_run, future):
            job_run.cancel()  # its engine says so of the task run, which is made by now
            threading.Thread(target=self._run, args=(job_run, engine, future), name="task-engine").start()
        elif waits_for_a_slot_alone(job_run.options, task_run):
            gate = self._gate_of(current_executor())
            job_run.on_begun = gate.leave
            gate.enter(set_out)
        else:
            set_out()
        return JobTaskFuture(task_run, future)

    def _enlist(self, job_run: JobRun, future: Future[State[Any]]) -> bool:
        """Whether it may begin: not where the flow run was cancelled, or ended, while its task run was made."""
        with self._lock:
            self._live[job_run] = future
            return not self._closed

    def _gate_of(self, executor: JobExecutor) -> Gate:
        with self._lock:
            return self._gates.setdefault(executor, Gate())

    def _run(self, job_run: JobRun, engine: Callable[[], State[Any]], future: Future[State[Any]]) -> None:
        try:
            future.set_result(engine())
        except BaseException as error:
            future.set_exception(error)
        finally:
            self._forget(job_run)

    def _refuse(self, name: str) -> NoReturn:
        if self._watch is not None and self._watch.cancelled:
            raise JobCancelledError(f"task {name!r} was submitted after its flow run was cancelled")
        raise RuntimeError(f"task {name!r} was submitted after its flow run had ended")

    def _forget(self, job_run: JobRun) -> None:
        with self._lock:
            self._live.pop(job_run, None)

    def end_early(self, *, cancel_running: bool) -> None:
        """Cancel what waits, and what runs if `cancel_running`; returns at once."""
        if cancel_running:
            self._hurries_since = self._hurries_since or time.monotonic()
            if self._flow_run_id is not None:
                flow_run_mirrors.hurry(self._flow_run_id)
        with self._lock:
            self._closed = True
            live = list(self._live)
        for job_run in live:
            job_run.end_early(cancel_running=cancel_running)

    def _wait_for_all(self) -> None:
        with self._lock:
            futures = list(self._live.values())
        concurrent.futures.wait(futures)

    def join(self, *, hurry: bool, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when every task run is over, and the server knows how; `meanwhile()` is called in between.

        `hurry`: the server gets seconds at most, since the process is to end. So it is after an exception in this
        (a signal), which ends all.
        """
        try:
            self._wait_for_all()
        except BaseException:
            hurry = True
            self.end_early(cancel_running=True)
            self._wait_for_all()
            raise
        finally:
            self._threads.shutdown(wait=False)
            with contextlib.ExitStack() as last:
                if self._watch is not None:
                    self._watch.jobs_finished()
                    last.callback(self._watch.close)
                meanwhile()
                self._tell_the_rest(hurry)

    def _tell_the_rest(self, hurry: bool) -> None:
        if hurry:
            flush_events()
        since = self._hurries_since or time.monotonic()
        flow_run_mirrors.close(self._flow_run_id, timeout=remaining_close_seconds(since) if hurry else None)
