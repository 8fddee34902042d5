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
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

import anyio
from prefect.client.schemas.objects import State
from prefect.results import should_persist_result
from prefect.task_engine import AsyncTaskRunEngine, BaseTaskRunEngine, SyncTaskRunEngine
from prefect.transactions import AsyncTransaction, Transaction
from prefect.utilities.asyncutils import run_coro_as_sync

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.prefect.events import flush_events
from executor_adapter.prefect.job_run import JobRun, outcome
from executor_adapter.prefect.logs import log_message
from executor_adapter.prefect.states import retrying
from executor_adapter.retry import RetryDecision

INTERRUPT_SECONDS = 15.0
"""How long an interrupted engine waits for its job to be dead: longer than the executor's grace before it kills."""


@dataclass(kw_only=True)
class JobEngine(BaseTaskRunEngine[..., Any]):
    """What both engines do alike."""

    job_run: JobRun

    def note(self, state: State[Any]) -> None:
        """Take note of a state just entered."""
        if self.task_run is not None and (state.is_final() or state.name == "NotReady"):
            self.job_run.settle(self.task_run, state, persist_result=should_persist_result())

    def has_no_end(self) -> bool:
        """Whether the task run was made and has not ended: an error of the engine must not leave it so."""
        return self.task_run is not None and not self.state.is_final() and self.state.name != "NotReady"

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
        self.logger.error("Job failed: %r (%s)", failure, decision.reason, exc_info=error)


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
        self.set_state(self.job_run.await_retry(decision), force=True)
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
            self.job_run.driver.acquire().result()
        except Exception as error:
            self.job_run.refusal = error  # raised by call_task_fn, where the engine expects errors
            return
        self.set_state(retrying(), force=True)
        self.call_hooks()

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table; a final one settles the job."""
        entered = super().set_state(self.job_run.named(state), force=force)
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
        flush_events()


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
            await _result(self.job_run.open(self.task_run, self.parameters or {}, hear))
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
        await _over(future)
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
        await self.set_state(self.job_run.await_retry(decision), force=True)
        self.retries += 1
        return True

    async def wait_until_ready(self) -> None:
        """Wait for the retry's time, then for a slot."""
        if (due := self.job_run.due) is None:
            return
        assert self.job_run.driver is not None, "a retry is one of a job that was started"
        self.job_run.due = None
        try:
            await _result(due)
            await _result(self.job_run.driver.acquire())
        except Exception as error:
            self.job_run.refusal = error  # raised by call_task_fn, where the engine expects errors
            return
        await self.set_state(retrying(), force=True)
        await self.call_hooks()

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table; a final one settles the job."""
        entered = await super().set_state(self.job_run.named(state), force=force)
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
                await _over(running)
        await super().handle_crash(exc)


async def _over(future: Future[Any]) -> None:
    """Wait until `future` is done, however. Cancelling the wait does not cancel it: it is the executor's."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(tell)
    await done.wait()


async def _result(future: Future[Any]) -> Any:
    await _over(future)
    return future.result()
