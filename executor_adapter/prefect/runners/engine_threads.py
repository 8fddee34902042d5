"""Submits task runs: each is Pending at once and is run by an engine in a thread of its own.

A thread costs little while it waits for a slot, and because all engines wait at the same time, priorities decide which
starts next, not the order of submission. Attempts are limited by the executor's `max_workers`, not here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import RunInput, State, TaskRun
from prefect.context import AsyncClientContext, FlowRunContext
from prefect.exceptions import Pause
from prefect.futures import PrefectConcurrentFuture, PrefectFuture, PrefectWrappedFuture
from prefect.results import ResultRecord  # type: ignore[attr-defined]  # Prefect exports it from there on purpose.
from prefect.states import Pending

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor import JobExecutor, current_executor
from executor_adapter.pools.in_process.slot_loan import current_slot_loan, lend_slot
from executor_adapter.prefect.cancellation.flow_end import FlowRunWatch
from executor_adapter.prefect.cancellation.watcher import flow_run_watcher, watch_flow_run
from executor_adapter.prefect.engine.engine import raise_if_suspended
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.run import context_of_engine, run_in_thread, run_sync
from executor_adapter.prefect.engine.task_runs import create_task_run
from executor_adapter.prefect.mirror import runs
from executor_adapter.prefect.mirror.mirror import remaining_close_seconds

MAX_THREADS = 32_768
"""Live task runs of one flow run; further ones wait for a thread. `run_jobs` needs no thread for each job."""


class JobTaskFuture(PrefectWrappedFuture[Any, Future[Any]]):
    """The future of a submitted task, which knows the task run's state without asking the server.

    It waits as a PrefectConcurrentFuture does, but is not one: `as_completed` and `wait` add their callbacks to that
    class directly, so that a job which waits there could not be recognized and would not lend its slot.
    """

    def __init__(self, task_run: TaskRun, wrapped_future: Future[Any]) -> None:
        super().__init__(task_run.id, wrapped_future)
        self._task_run = task_run

    @functools.cached_property
    def _future(self) -> PrefectConcurrentFuture[Any]:
        """Prefect's future for the same task run, which is made where this class needs it."""
        return PrefectConcurrentFuture(self.task_run_id, self.wrapped_future)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task run has ended. A job that waits lends its slot meanwhile."""
        with self._lend_slot():
            self._future.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        """Return the task run's value once it has ended. A job that waits lends its slot meanwhile."""
        with self._lend_slot():
            if timeout is None:
                self.wrapped_future.exception()
            if (record := self._record()) is None:
                return self._future.result(timeout, raise_on_failure)
        raise_if_suspended()
        return record.result

    def _record(self) -> ResultRecord[Any] | None:
        """Return the result of a task run that has completed. Prefect would ask its event loop for it."""
        future = self.wrapped_future
        if not future.done() or future.exception() is not None:
            return None
        state: State[Any] = future.result()
        return state.data if state.is_completed() and isinstance(state.data, ResultRecord) else None

    def _lend_slot(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.wrapped_future.done() else lend_slot()

    def add_done_callback(self, fn: Callable[[PrefectFuture[Any]], None]) -> None:
        """Call `fn(self)` once the task run has ended.

        A job that adds a callback counts as waiting until then, as in `as_completed`, and lends its slot.
        """
        if (loan := current_slot_loan.get()) is not None and not self.wrapped_future.done():
            loan.begin()
            self.wrapped_future.add_done_callback(lambda _: loan.end())
        super().add_done_callback(fn)

    @property
    def state(self) -> State[Any]:
        """The state that the engine has set last."""
        return self._task_run.state or Pending()


MAX_STARTING = 4
"""Engines that may be starting at once: enough that a free slot never waits for an engine."""


class Gate:
    """Lets the engines of each pool start in the order of their arrival, a few at a time. Thread-safe.

    Too many contend for the GIL and delay those about to finish: without it, 2,000 no-op tasks run a seventh slower in
    threads, and a third slower in processes. An engine starts when one of the few before it has its slot. One that
    may have to wait for something other than a slot of its pool must not take a place.
    """

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self.defaults = defaults
        """What the settings of its executor say of a job task."""
        self._starting: Counter[Hashable] = Counter()
        self._waiting: defaultdict[Hashable, deque[Callable[[], object]]] = defaultdict(deque)
        self._lock = threading.Lock()

    def enter(self, pool: Hashable, start: Callable[[], object]) -> None:
        """Call `start()` as soon as the pool has a place, now or from `leave`; each caller must `leave` once."""
        with self._lock:
            if self._starting[pool] == MAX_STARTING:
                self._waiting[pool].append(start)
                return
            self._starting[pool] += 1
        start()

    def leave(self, pool: Hashable) -> None:
        """Give the place to the next engine of the pool."""
        with self._lock:
            if not self._waiting[pool]:
                self._starting[pool] -= 1
                return
            start = self._waiting[pool].popleft()
        with contextlib.suppress(RuntimeError):  # No further thread can be started: the next that is free takes it.
            start()


def waits_only_for_slot(options: Mapping[str, Any], task_run: TaskRun) -> bool:
    """Return whether the task run has no upstream task, no limit of a tag or tool, no resources and no deadline."""
    waits = ("tool_name", "priority", "queue_timeout", "deadline", "dedupe_key", "resources")
    return not (task_run.tags or any(task_run.task_inputs.values()) or any(options.get(name) for name in waits))


def is_interruption(kind: type[BaseException] | None) -> bool:
    """Return whether what ends a flow interrupts it, as a signal does, and is neither an error nor a suspension."""
    return kind is not None and not issubclass(kind, Exception | Pause)


class EngineThreads:
    """Runs the submitted tasks of one flow run, each in an engine's thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="task-engine")
        self._live: dict[JobRun, Future[State[Any]]] = {}
        self._gates: WeakKeyDictionary[JobExecutor, Gate] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._closed = False
        self._watch: FlowRunWatch | None = None
        self._flow_run_id: UUID | None = None
        self._is_async = False
        """Whether the flow is async, so that its end must not block its event loop."""
        self._cancelled_at: float | None = None

    def watch(self) -> None:
        """Cancel the jobs when the flow run around the caller is cancelled, from now on until all have ended."""
        context = FlowRunContext.get()
        with self._lock:
            if self._watch is None and not self._closed and context is not None and context.flow_run is not None:
                self._flow_run_id = context.flow_run.id
                self._is_async = context.flow is not None and context.flow.isasync
                self._watch = watch_flow_run(self._flow_run_id, self.end_early, until_flow_ends=True)

    def submit(
        self,
        job_run: JobRun,
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> JobTaskFuture:
        """Run the task of `job_run` in a copy of the caller's context; the future gives its final State.

        Raises:
            RuntimeError: The flow run has ended.
            JobCancelledError: the flow run was cancelled.
        """
        self.watch()
        name = job_run.task.name
        if self._closed and self._flow_run_id in flow_run_watcher.cancelled:
            raise JobCancelledError(f"task {name!r} was submitted after its flow run was cancelled")
        if self._closed:
            raise RuntimeError(f"task {name!r} was submitted after its flow run had ended: submit it in the flow")
        executor = current_executor()  # Made in the flow's thread: it notices signals only if the main thread makes it.
        task_run = create_task_run(job_run, parameters, wait_for, dependencies)
        future: Future[State[Any]] = Future()
        future.set_running_or_notify_cancel()  # A future cancelled by the user would leave the task run Pending.
        run = functools.partial(run_sync, wait_for=wait_for, return_type="state", task_run=task_run)
        engine = functools.partial(context_of_engine().run, run, job_run, parameters)

        run_once = functools.partial(self._run, job_run, iter((engine,)), future)
        start = functools.partial(self._threads.submit, run_once)
        try:
            if (gate := self._register(job_run, future, executor)) is None:
                job_run.end_early()  # The task run exists by now, so its engine has to record it as Cancelled.
                run_once()
            elif waits_only_for_slot(options := {**gate.defaults, **job_run.options}, task_run):
                pool = options.get("pool"), job_run.task.isasync  # The latter decides where "auto" runs.
                job_run.on_started = functools.partial(gate.leave, pool)
                gate.enter(pool, start)
            else:
                start()
        except RuntimeError:  # The system starts no further thread now, so the caller runs it.
            with lend_slot():
                run_once()
        executor.expect(future)  # It learns of the job only when the engine asks for a slot.
        return JobTaskFuture(task_run, future)

    def _register(self, job_run: JobRun, future: Future[State[Any]], executor: JobExecutor) -> Gate | None:
        """Return the gate of its engine; None if the flow run has ended while the task run was made."""
        with self._lock:
            self._live[job_run] = future
            if not self._closed and executor not in self._gates:
                self._gates[executor] = Gate(executor.config.for_job_tasks().job.given())
            return None if self._closed else self._gates[executor]

    def _run(self, job_run: JobRun, once: Iterator[Callable[[], State[Any]]], future: Future[State[Any]]) -> None:
        """Run the engine in `once`, unless that was done: a pool keeps what it could start no thread for."""
        for engine in once:
            try:
                future.set_result(engine())
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    self._live.pop(job_run, None)

    def end_early(self, *, cancel_running: bool = True) -> None:
        """Cancel waiting jobs, and running ones if `cancel_running`; return at once."""
        if cancel_running:
            self._cancelled_at = self._cancelled_at or time.monotonic()
            if (mirror := runs.find(self._flow_run_id)) is not None:
                mirror.hurry()
        with self._lock:
            self._closed = True
            live = list(self._live)
        for job_run in reversed(live):  # A task run whose input is cancelled knows by then that it is too.
            job_run.end_early(cancel_running=cancel_running)

    def _wait_for_all(self) -> None:
        with self._lock:
            futures = list(self._live.values())
        concurrent.futures.wait(futures)

    def join(self, *, interrupted: bool, between: Callable[[], object] = lambda: None) -> None:
        """Wait until every task run has ended, call `between()`, and wait until the server has recorded their ends.

        `interrupted`: the process is about to end, so the server gets only seconds. An exception during the wait, as of
        a signal, cancels all jobs and counts as an interruption. Else an async flow awaits the server, after this call.
        """
        try:
            self._wait_for_all()
        except BaseException:
            interrupted = True
            self.end_early()
            self._wait_for_all()
            raise
        finally:
            self._threads.shutdown(wait=False)
            with contextlib.ExitStack() as last:
                if self._watch is not None:
                    self._watch.run.finish_jobs(interrupted=interrupted)
                    last.callback(self._watch.close)
                between()
                last.callback(self._finish_mirror, interrupted)
                mirror = runs.find(self._flow_run_id) if self._is_async and not interrupted else None
                if mirror is not None:
                    end, seconds = last.pop_all(), remaining_close_seconds(time.monotonic())
                    if not await_at_flow_end(end.close, functools.partial(mirror.close, seconds)):
                        last.push(end)

    def _finish_mirror(self, interrupted: bool) -> None:
        if interrupted:
            runs.flush_events()
        began = self._cancelled_at or time.monotonic()
        runs.close(self._flow_run_id, timeout=remaining_close_seconds(began) if interrupted else None)


# --- the end of an async flow ---
# Prefect leaves a flow's task runner by `__exit__`, which cannot await anything. What an async flow awaits last is the
# end of its client, so the wait for the server goes there: its event loop is not blocked.


def await_at_flow_end(wait: Callable[[], object], give_up: Callable[[], object]) -> bool:
    """Call `wait()` on a thread, and let the flow around the caller await it at its end; `give_up()` makes it return.

    Returns False, and calls nothing, if the caller is in no event loop that has a client of Prefect, or has no thread.
    """
    context = AsyncClientContext.get()
    with contextlib.suppress(RuntimeError):  # The caller is in no event loop, or the system cannot start a thread.
        if context is not None and context.client.loop is asyncio.get_running_loop():
            client: Any = context.client
            if not isinstance(client.__aexit__, _AwaitedEnd):
                client.__aexit__ = _AwaitedEnd(client)
            client.__aexit__.add(wait, give_up)
            return True
    return False


class _AwaitedEnd:
    """Replaces `__aexit__` of a client. That of a flow with subflows awaits theirs too, and there can be thousands."""

    def __init__(self, client: PrefectClient) -> None:
        self._leave = client.__aexit__
        self._waits: dict[Future[object], Callable[[], object]] = {}
        """What is awaited, with what makes it return."""

    def add(self, wait: Callable[[], object], give_up: Callable[[], object]) -> None:
        """Call `wait()` on a thread, and await it."""
        # Not a daemon thread: the interpreter must not exit before the server had its time.
        waiting = run_in_thread(wait, "flow-end", daemon=False)
        self._waits[waiting] = give_up
        waiting.add_done_callback(self._forget)

    def _forget(self, waiting: Future[object]) -> None:
        if waiting.exception() is None:
            del self._waits[waiting]

    async def __call__(self, kind: type[BaseException] | None = None, *details: Any) -> Any:
        awaited = dict(self._waits)
        try:
            if is_interruption(kind):
                for give_up in awaited.values():
                    give_up()
            waits = asyncio.gather(*map(asyncio.wrap_future, awaited), return_exceptions=True)
            for error in await asyncio.shield(waits):
                if isinstance(error, BaseException):
                    raise error
        except BaseException:
            for give_up in awaited.values():
                give_up()
            raise
        finally:
            left = await self._leave(kind, *details)
        return left
