"""AsyncJobEngine: drives one job from an event loop, step by step as SyncJobEngine does from a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

from prefect.client.schemas.objects import State
from prefect.concurrency.context import ConcurrencyContext
from prefect.task_engine import AsyncTaskRunEngine
from prefect.transactions import AsyncTransaction, atransaction
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import log_message
from executor_adapter.prefect.engine.base import FORBIDDEN, IMMEDIATE_RETRY_TIMEOUT, INTERRUPT_TIMEOUT, JobEngine
from executor_adapter.prefect.engine.waiting import await_result, is_done_within, wait_until_done
from executor_adapter.prefect.mirror.states import retrying


@dataclass(kw_only=True)
class AsyncJobEngine(JobEngine, AsyncTaskRunEngine[..., Any]):
    """Drives one job from an event loop, which it never blocks."""

    async def begin_run(self) -> None:
        """Wait for a slot; the task run is Pending until it has one."""
        assert self.task_run is not None, "the engine makes the task run before it begins"
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def on_message(topic: str, content: Any) -> None:
            loop.call_soon_threadsafe(self._log_message, topic, content, context=context)

        try:
            await await_result(self.job_run.open(self.task_run, self.parameters or {}, on_message))
            self.job_run.notify_started()
        except Exception as error:
            await self.handle_exception(self.job_run.refuse(error))
            return
        await super().begin_run()

    def _log_message(self, topic: str, content: Any) -> None:
        log_message(self.logger, topic, content, log_prints=should_log_prints(self.task))

    @contextlib.asynccontextmanager
    async def run_context(self) -> AsyncIterator[Self]:
        """Set up the context of an attempt, without Prefect's timer: `timeout_seconds` is a limit of the job."""
        with self.attempt_context(), ConcurrencyContext():
            try:
                yield self
            except TimeoutError as error:
                await self.handle_timeout(error)
            except Exception as error:
                await self.handle_exception(error)

    @contextlib.asynccontextmanager
    async def transaction_context(self) -> AsyncIterator[AsyncTransaction]:
        """Open the task run's transaction."""
        async with atransaction(**self.transaction_options()) as opened:
            opened.overwrite = self.overwrites()
            yield opened

    async def call_task_fn(self, transaction: AsyncTransaction) -> Any:
        """Run one attempt and return its value; a cached result needs no attempt."""
        if self.job_run.refusal is not None:
            raise self.job_run.refusal
        result = await (transaction.read() if transaction.is_committed() else self._attempt())
        self.job_run.value = result
        await self.handle_success(self.in_record(result, transaction), transaction=transaction)
        return result

    async def _attempt(self) -> Any:
        assert self.task_run is not None, "only a task run has attempts"
        future = self.job_run.attempt(self.task_run)
        await wait_until_done(future)
        return self.job_run.result_of(future)

    async def handle_retry(self, exc_or_state: Exception | State[Any]) -> bool:
        """Return whether another attempt follows; the task run then waits for it."""
        decision = self.job_run.decide(exc_or_state)
        if decision.retry and not await self.can_retry(exc_or_state):
            decision = FORBIDDEN
        if (awaiting := self.prepare_retry(exc_or_state, decision)) is not None:
            await self.set_state(awaiting, force=True)
        return decision.retry

    async def wait_until_ready(self) -> None:
        """Wait until a retry is due, then for its slot."""
        if (due := self.job_run.take_retry_due()) is None:
            return
        try:
            await await_result(due)
            slot = self.job_run.acquire_slot()
            skipped = self.job_run.skipped_state
            if skipped is not None and not await is_done_within(slot, IMMEDIATE_RETRY_TIMEOUT):
                await self.set_state(skipped, force=True)
            await await_result(slot)
        except Exception as error:
            self.job_run.refuse(error)  # Raised by call_task_fn, where the engine expects errors.
            return
        await self.set_state(retrying(self.job_run.skipped_state), force=True)
        await self.call_hooks()

    async def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table of states; a final state settles the job."""
        named, reporter = self.job_run.name_failure(state), self.job_run.reporter
        entered = self.enter(named, reporter) if reporter else await super().set_state(named, force=force)
        self.settle_if_final(entered)
        return entered

    async def call_hooks(self, state: State[Any] | None = None) -> None:
        """Call the hooks for `state`; `on_failure` is called for Crashed and OutOfMemory too, as in SyncJobEngine."""
        entered = state or self.state
        if not entered.is_crashed():
            await super().call_hooks(state)
            return
        assert self.task_run is not None, "only a task run enters states"
        for hook in self.task.on_failure_hooks:
            with self.logged_hook_errors(hook):
                result = hook(self.task, self.task_run, entered)
                if asyncio.iscoroutine(result):
                    await result

    async def handle_crash(self, exc: BaseException) -> None:
        """End the job and record it as Cancelled: the engine was interrupted, by cancellation or a signal."""
        running = self.job_run.interrupt(exc)
        # First the state: the wait can be cancelled, and nothing in an event loop is sure to get another turn.
        await super().handle_crash(exc)
        if running is not None:
            await is_done_within(running, INTERRUPT_TIMEOUT, shield=True)
