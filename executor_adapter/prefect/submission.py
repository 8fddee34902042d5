"""Submits task runs: each is Pending at once, and run by an engine in a thread of its own.

A thread costs little while it waits for a slot, and holding them all lets priorities decide, not the order of
submission. Attempts are bounded by the executor's `max_workers`, not here.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary

from prefect import Task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import RunInput, State, TaskRun
from prefect.futures import PrefectConcurrentFuture
from prefect.states import Pending

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor import JobExecutor, current_executor
from executor_adapter.prefect.cancellation import FlowRunWatch, watch_flow_run
from executor_adapter.prefect.events import current_flow_run, emit_state, flush_events
from executor_adapter.prefect.gate import Gate
from executor_adapter.prefect.job_run import JobRun, running_driver
from executor_adapter.prefect.run import run_sync

MAX_THREADS = 32_768
"""Live task runs of one flow run: beyond it they queue. `run_jobs` needs no thread a job."""


class JobTaskFuture(PrefectConcurrentFuture[Any]):
    """The future of a submitted task: its state is known here, without asking the server."""

    def __init__(self, task_run: TaskRun, wrapped_future: Future[Any]) -> None:
        super().__init__(task_run.id, wrapped_future)
        self._task_run = task_run

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task run is over. A job that waits for it lends its slot meanwhile."""
        with self._slot_lent():
            super().wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Its value, once it is over; a job that waits for it lends its slot meanwhile."""
        with self._slot_lent():
            return super().result(timeout, raise_on_failure)

    def _slot_lent(self) -> AbstractContextManager[None]:
        driver = running_driver.get()
        return contextlib.nullcontext() if driver is None or self.wrapped_future.done() else driver.waiting()

    @property
    def state(self) -> State[Any]:
        """The state that the engine set last."""
        return self._task_run.state or Pending()


def create_task_run(
    task: Task[..., Any],
    parameters: dict[str, Any],
    wait_for: Iterable[Any] | None,
    dependencies: dict[str, set[RunInput]] | None,
) -> TaskRun:
    """Make the task run of a call, in the context of the caller, and tell the server that it is Pending."""
    making = task.create_local_run(
        client=cast(PrefectClient, contextlib.nullcontext()),  # asked for, entered, and not used for a local run
        parameters=parameters,
        wait_for=wait_for,
        extra_task_inputs=dependencies,
    )
    try:
        making.send(None)
    except StopIteration as finished:
        task_run: TaskRun = finished.value
    else:
        making.close()
        raise RuntimeError("Prefect's Task.create_local_run waits for something: it did not in the versions known")
    assert task_run.state is not None, "a new task run is Pending"
    emit_state(task, task_run, task_run.state, flow_run=current_flow_run())
    return task_run


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

    def watch(self) -> None:
        """Hear of the cancel of the flow run around the caller, from now on until all is over."""
        flow_run = current_flow_run()
        with self._lock:
            if self._watch is not None or self._closed or flow_run is None:
                return
            self._watch = watch_flow_run(flow_run.id, self.cancel, until_over=True)

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
        task_run = create_task_run(job_run.task, parameters, wait_for, dependencies)
        future: Future[State[Any]] = Future()
        future.set_running_or_notify_cancel()  # cancelling it would leave the task run Pending for ever
        with self._lock:
            self._live[job_run] = future
        context = copy_context()
        context.run(running_driver.set, None)  # an engine that waits for its inputs is no job that waits
        engine = functools.partial(
            context.run, run_sync, job_run, parameters, wait_for=wait_for, return_type="state", task_run=task_run
        )

        def set_out() -> None:
            self._threads.submit(self._run, job_run, engine, future)

        if waits_for_a_slot_alone(job_run.options, task_run):
            gate = self._gate_of(current_executor())
            job_run.on_begun = gate.leave
            gate.enter(set_out)
        else:
            set_out()
        return JobTaskFuture(task_run, future)

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
        with self._lock:
            self._closed = True
            live = list(self._live)
        for job_run in live:
            job_run.end_early(cancel_running=cancel_running)

    def _wait_for_all(self) -> None:
        with self._lock:
            futures = list(self._live.values())
        concurrent.futures.wait(futures)

    def join(self) -> None:
        """Return when every task run is over; an exception meanwhile (a signal) cancels them all."""
        try:
            self._wait_for_all()
        except BaseException:
            self.end_early(cancel_running=True)
            self._wait_for_all()
            flush_events()
            raise
        finally:
            self._threads.shutdown(wait=False)
            if self._watch is not None:
                self._watch.close()
