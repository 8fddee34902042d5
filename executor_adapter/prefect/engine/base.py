"""Prefect's task engines, each attempt run by the executor.

Prefect keeps what it does well: inputs, caching, transactions, hooks, results, tags and their limits, the order of
states. Overridden, public methods only, is what a job does otherwise: it begins when the executor has a slot, its
attempts run there, `retry.decide` decides on retries, a waiting retry holds no slot, and final states are named by
the table of `states`.

Failures are raised, never returned as a State: a returned one would not raise when the task is called directly, and a
returned Crashed would be committed to the cache.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, Self, cast

import anyio
from opentelemetry import trace
from prefect.client.schemas.objects import State
from prefect.results import ResultRecord  # type: ignore[attr-defined]  # imported there, and meant to be
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.task_engine import AsyncTaskRunEngine, BaseTaskRunEngine, SyncTaskRunEngine
from prefect.transactions import AsyncTransaction, Transaction
from prefect.types import DateTime
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import link_state_to_task_run_result

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job.retry import RetryDecision
from executor_adapter.prefect.child.logs import log_failure, log_message
from executor_adapter.prefect.engine.job_run import JobRun, outcome
from executor_adapter.prefect.engine.waiting import over, result_of
from executor_adapter.prefect.mirror.flow_run_mirrors import TaskRunReporter
from executor_adapter.prefect.mirror.state_events import is_final
from executor_adapter.prefect.mirror.states import retrying
from executor_adapter.prefect.reporting.events import flush_events

TICK = timedelta(microseconds=1)

BRIEF_SECONDS = 1.0
"""A retry without a delay that has its slot within these is Retrying at once, as in Prefect; else AwaitingRetry."""

INTERRUPT_SECONDS = 15.0
"""How long an interrupted engine waits for its job to be dead: longer than the executor's grace before it kills."""


@dataclass(kw_only=True)
class JobEngine(BaseTaskRunEngine[..., Any]):
    """What both engines do alike."""

    job_run: JobRun

    def note(self, state: State[Any]) -> None:
        """Take note of a state just entered."""
        if self.task_run is not None and _ends(state):
            self.job_run.settle(state)

    def enter(self, state: State[Any], reporter: TaskRunReporter) -> State[Any]:
        """Enter `state` as `set_state` of Prefect's engines does, and have the mirror tell of it.

        Prefect's would send an event of its own for each, which costs several times as much, waits for no server and
        asks for no receipt.
        """
        assert self.task_run is not None, "a state is one of a task run"
        run, last = self.task_run, self.state
        # The server takes only what is newer than what it has; clocks may be set back.
        if state.timestamp <= last.timestamp:
            state.timestamp = last.timestamp + TICK
        state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
        run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
        if last.is_running():
            run.total_run_time += state.timestamp - last.timestamp
        if state.is_running():
            run.run_count += 1
        if state.is_final():
            if run.start_time is not None and run.end_time is None:
                run.end_time = cast(DateTime, state.timestamp)
            data: Any = state.data
            link_state_to_task_run_result(state, data.result if isinstance(data, ResultRecord) else data)
        reporter.report(run, state, last)
        if get_current_settings().cloud.enable_orchestration_telemetry:
            trace.get_current_span().add_event(state.name or state.type.value, _span_attributes(state))
        return state

    def handle_rollback(self, txn: Transaction) -> None:
        """Tell that the transaction which the task run was part of was rolled back."""
        if self.job_run.reporter is None:
            super().handle_rollback(txn)
            return
        assert self.task_run is not None, "what is rolled back was run"
        rolled_back: State[Any] = Completed(name="RolledBack", message="Task rolled back as part of transaction")
        self.job_run.reporter.report(self.task_run, rolled_back, self.state)

    def hurry(self) -> None:
        """The process may be about to end by a signal: let what was told be on its way."""
        if self.job_run.reporter is not None:
            self.job_run.reporter.hurry()
        else:
            flush_events()

    def has_no_end(self) -> bool:
        """Whether the task run was made and has not ended: an error of the engine must not leave it so."""
        return self.task_run is not None and not _ends(self.state)

    def log_failure(self, failure: BaseException | State[Any], decision: RetryDecision) -> None:
        """Say how the attempt ended and what follows; where nothing follows, with the traceback."""
        if decision.retry:
            self.logger.warning(
                "Attempt failed: %r. Next attempt in %.1f s (%s)", failure, decision.delay, decision.reason
            )
            return
        if isinstance(failure, JobCancelledError):
            self.logger.warning("Job cancelled: %s", failure)
            return
        error = failure if isinstance(failure, BaseException) else None
        last = "Retries are exhausted: " if 0 < self.task.retries <= self.retries else ""  # as Prefect's logs say it
        log_failure(self.logger, f"Job failed: {failure!r} ({last}{decision.reason})", error)


@dataclass(kw_only=True)
class SyncJobEngine(JobEngine, SyncTaskRunEngine[..., Any]):
    """Drives one job from a thread that may block."""

    def begin_run(self) -> None:
        """Wait for a slot; the task run is Pending until there is one."""
        assert self.task_run is not None, "the engine makes the task run before it begins"
        self._messages: SimpleQueue[Any] = SimpleQueue()
        try:
            self.job_run.open(self.task_run, self.parameters or {}, self._hear).result()
            self.job_run.begun()
        except Exception as error:
            self.job_run.refusal = error
            self.handle_exception(error)
            return
        super().begin_run()

    @contextlib.contextmanager
    def run_context(self) -> Iterator[Self]:
        """Where an attempt runs. The task's `timeout_seconds` is the job's limit, which needs no clock here."""
        with self.setup_run_context():
            try:
                yield self
            except TimeoutError as error:
                self.handle_timeout(error)
            except Exception as error:
                self.handle_exception(error)

    def call_task_fn(self, transaction: Transaction) -> Any:
        """Run one attempt; a result that is cached needs none."""
        if self.job_run.refusal is not None:
            raise self.job_run.refusal
        result = transaction.read() if transaction.is_committed() else self._attempt()
        self.job_run.value = result
        self.handle_success(result, transaction=transaction)
        return result

    def _attempt(self) -> Any:
        assert self.task_run is not None, "an attempt is one of a task run"
        future = self.job_run.attempt(self.task_run, self.parameters or {})
        future.add_done_callback(self._messages.put)
        # What the job says is logged here, by the thread whose context names the task run, and before it has ended.
        for topic, content in iter(self._messages.get, future):
            log_message(self.logger, topic, content)
        return outcome(future)

    def _hear(self, topic: str, content: Any) -> None:
        self._messages.put((topic, content))

    def handle_retry(self, exc_or_state: Exception | State[Any]) -> bool:
        """Whether another attempt follows; the task run then awaits it."""
        decision = self.job_run.decide(exc_or_state)
        if decision.retry and not self.can_retry(exc_or_state):
            decision = RetryDecision(retry=False, reason="its retry_condition_fn says no")
        self.log_failure(exc_or_state, decision)
        if not decision.retry:
            self.job_run.failed_with(exc_or_state)
            return False
        if (awaiting := self.job_run.await_retry(decision)) is not None:
            self.set_state(awaiting, force=True)
        self.retries += 1
        return True

    def wait_until_ready(self) -> None:
        """Wait for the retry's time, then for a slot."""
        if (due := self.job_run.due) is None:
            return
        assert self.job_run.driver is not None, "a retry is one of a job that was started"
        self.job_run.due = None
        try:
            due.result()
            slot = self.job_run.driver.acquire()
            untold = self.job_run.untold
            if untold is not None and not concurrent.futures.wait([slot], BRIEF_SECONDS).done:
                self.set_state(untold, force=True)
            slot.result()
        except Exception as error:
            self.job_run.refusal = error  # raised by call_task_fn, where the engine expects errors
            return
        self.set_state(retrying(self.job_run.untold), force=True)
        self.call_hooks()

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table; a final one settles the job."""
        named, reporter = self.job_run.named(state), self.job_run.reporter
        entered = self.enter(named, reporter) if reporter else super().set_state(named, force=force)
        self.note(entered)
        return entered

    def call_hooks(self, state: State[Any] | None = None) -> None:
        """Call the hooks for `state`; `on_failure` is called for Crashed and OutOfMemory too.

        Prefect calls it for FAILED states alone, since in Prefect a crash takes the engine along. Here the engine
        lives, and whoever wants to hear of failures wants to hear of these.
        """
        entered = state or self.state
        if not entered.is_crashed():
            super().call_hooks(state)
            return
        assert self.task_run is not None, "a state is one of a task run"
        for hook in self.task.on_failure_hooks:
            try:
                result = hook(self.task, self.task_run, entered)
                if asyncio.iscoroutine(result):
                    run_coro_as_sync(result)
            except Exception:
                self.logger.exception("An error was encountered while running hook %r", hook)

    def handle_crash(self, exc: BaseException) -> None:
        """The engine is interrupted by a signal or its like: end the job, and record it Cancelled."""
        running = self.job_run.interrupt(f"ended by {type(exc).__name__}")
        if running is not None:
            concurrent.futures.wait([running], timeout=INTERRUPT_SECONDS)
        super().handle_crash(exc)
        self.hurry()


@dataclass(kw_only=True)
class AsyncJobEngine(JobEngine, AsyncTaskRunEngine[..., Any]):
    """Drives one job from an event loop, which it never blocks."""

    async def begin_run(self) -> None:
        """Wait for a slot; the task run is Pending until there is one."""
        assert self.task_run is not None, "the engine makes the task run before it begins"
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def hear(topic: str, content: Any) -> None:
            loop.call_soon_threadsafe(self._log_message, topic, content, context=context)

        try:
            await result_of(self.job_run.open(self.task_run, self.parameters or {}, hear))
        except Exception as error:
            self.job_run.refusal = error
            await self.handle_exception(error)
            return
        await super().begin_run()

    def _log_message(self, topic: str, content: Any) -> None:
        log_message(self.logger, topic, content)

    @contextlib.asynccontextmanager
    async def run_context(self) -> AsyncIterator[Self]:
        """Where an attempt runs. The task's `timeout_seconds` is the job's limit, which needs no clock here."""
        async with self.setup_run_context():
            try:
                yield self
            except TimeoutError as error:
                await self.handle_timeout(error)
            except Exception as error:
                await self.handle_exception(error)

    async def call_task_fn(self, transaction: AsyncTransaction) -> Any:
        """Run one attempt; a result that is cached needs none."""
        if self.job_run.refusal is not None:
            raise self.job_run.refusal
        result = await (transaction.read() if transaction.is_committed() else self._attempt())
        self.job_run.value = result
        await self.handle_success(result, transaction=transaction)
        return result

    async def _attempt(self) -> Any:
        assert self.task_run is not None, "an attempt is one of a task run"
        future = self.job_run.attempt(self.task_run, self.parameters or {})
        await over(future)
        return outcome(future)

    async def handle_retry(self, exc_or_state: Exception | State[Any]) -> bool:
        """Whether another attempt follows; the task run then awaits it."""
        decision = self.job_run.decide(exc_or_state)
        if decision.retry and not await self.can_retry(exc_or_state):
            decision = RetryDecision(retry=False, reason="its retry_condition_fn says no")
        self.log_failure(exc_or_state, decision)
        if not decision.retry:
            self.job_run.failed_with(exc_or_state)
            return False
        if (awaiting := self.job_run.await_retry(decision)) is not None:
            await self.set_state(awaiting, force=True)
        self.retries += 1
        return True

    async def wait_until_ready(self) -> None:
        """Wait for the retry's time, then for a slot."""
        if (due := self.job_run.due) is None:
            return
        assert self.job_run.driver is not None, "a retry is one of a job that was started"
        self.job_run.due = None
        try:
            await result_of(due)
            slot = self.job_run.driver.acquire()
            if self.job_run.untold is not None:
                with anyio.move_on_after(BRIEF_SECONDS):
                    await over(slot)
                if not slot.done():
                    await self.set_state(self.job_run.untold, force=True)
            await result_of(slot)
        except Exception as error:
            self.job_run.refusal = error  # raised by call_task_fn, where the engine expects errors
            return
        await self.set_state(retrying(self.job_run.untold), force=True)
        await self.call_hooks()

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table; a final one settles the job."""
        named, reporter = self.job_run.named(state), self.job_run.reporter
        entered = self.enter(named, reporter) if reporter else await super().set_state(named, force=force)
        self.note(entered)
        return entered

    async def call_hooks(self, state: State[Any] | None = None) -> None:
        """Call the hooks for `state`; `on_failure` is called for Crashed and OutOfMemory too, as SyncJobEngine does."""
        entered = state or self.state
        if not entered.is_crashed():
            await super().call_hooks(state)
            return
        assert self.task_run is not None, "a state is one of a task run"
        for hook in self.task.on_failure_hooks:
            try:
                result = hook(self.task, self.task_run, entered)
                if asyncio.iscoroutine(result):
                    await result
            except Exception:
                self.logger.exception("An error was encountered while running hook %r", hook)

    async def handle_crash(self, exc: BaseException) -> None:
        """The engine is interrupted, by cancellation or a signal: end the job, and record it Cancelled."""
        running = self.job_run.interrupt(f"ended by {type(exc).__name__}")
        if running is not None:
            with anyio.move_on_after(INTERRUPT_SECONDS, shield=True):
                await over(running)
        await super().handle_crash(exc)


def _ends(state: State[Any]) -> bool:
    """Whether a task run stays in it."""
    return is_final(state.type.value, state.name or "")


def _span_attributes(state: State[Any]) -> dict[str, str]:
    """Of an event in the task run's span, as Prefect's engines put it there."""
    return {
        "prefect.state.message": state.message or "",
        "prefect.state.type": state.type.value,
        "prefect.state.name": state.name or state.type.value,
        "prefect.state.id": str(state.id),
    }
