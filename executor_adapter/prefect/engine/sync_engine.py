"""SyncJobEngine: drives one job from a thread that may block."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.concurrency.context import ConcurrencyContext
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.loggers import task_run_logger
from prefect.results import get_result_store
from prefect.task_engine import SyncTaskRunEngine
from prefect.transactions import Transaction, transaction
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.engine import should_log_prints

from executor_adapter.prefect.child.logs import log_message
from executor_adapter.prefect.engine.base import FORBIDDEN, IMMEDIATE_RETRY_TIMEOUT, INTERRUPT_TIMEOUT, JobEngine
from executor_adapter.prefect.mirror.states import retrying


@dataclass(kw_only=True)
class SyncJobEngine(JobEngine, SyncTaskRunEngine[..., Any]):
    """Drives one job from a thread that may block."""

    def begin_run(self) -> None:
        """Wait for a slot; the task run is Pending until it has one."""
        assert self.task_run is not None, "the engine makes the task run before it begins"
        self._messages: SimpleQueue[Any] = SimpleQueue()
        try:
            self.job_run.open(self.task_run, self.parameters or {}, self._on_message).result()
            self.job_run.notify_started()
        except Exception as error:
            self.handle_exception(self.job_run.refuse(error))
            return
        if self.job_run.reporter is None:
            super().begin_run()
            return
        state = self.set_state(self.first_state())
        self.call_hooks(state)

    @contextlib.contextmanager
    def setup_run_context(self, client: SyncPrefectClient | None = None) -> Iterator[None]:
        """Set up the task run's context. Within a flow nothing of it has to be validated or looked up again."""
        if FlowRunContext.get() is None or should_log_prints(self.task):
            with super().setup_run_context(client):
                yield
            return
        assert self.task_run is not None, "only a task run has a context"
        store: Any = get_result_store()
        fields = {**self.run_context_fields(), "result_store": store.update_for_task(self.task, _sync=True)}
        with TaskRunContext.model_construct(client=client or self.client, **fields), ConcurrencyContext():
            logger: Any = task_run_logger(task_run=self.task_run, task=self.task)
            self.logger = logger
            yield

    @contextlib.contextmanager
    def run_context(self) -> Iterator[Self]:
        """Set up the context of an attempt, without Prefect's timer: `timeout_seconds` is a limit of the job."""
        with self.attempt_context(), ConcurrencyContext():
            try:
                yield self
            except TimeoutError as error:
                self.handle_timeout(error)
            except Exception as error:
                self.handle_exception(error)

    @contextlib.contextmanager
    def transaction_context(self) -> Iterator[Transaction]:
        """Open the task run's transaction."""
        with transaction(**self.transaction_options()) as opened:
            opened.overwrite = self.overwrites()
            yield opened

    def call_task_fn(self, transaction: Transaction) -> Any:
        """Run one attempt and return its value; a cached result needs no attempt."""
        if self.job_run.refusal is not None:
            raise self.job_run.refusal
        result = transaction.read() if transaction.is_committed() else self._attempt()
        self.job_run.value = result
        self.handle_success(self.in_record(result, transaction), transaction=transaction)
        return result

    def _attempt(self) -> Any:
        assert self.task_run is not None, "only a task run has attempts"
        future = self.job_run.attempt(self.task_run)
        future.add_done_callback(self._messages.put)
        # This thread's context names the task run, so messages are logged here, and before the attempt has ended.
        for topic, content in iter(self._messages.get, future):
            log_message(self.logger, topic, content, log_prints=should_log_prints(self.task))
        return self.job_run.result_of(future)

    def _on_message(self, topic: str, content: Any) -> None:
        self._messages.put((topic, content))

    def handle_retry(self, exc_or_state: Exception | State[Any]) -> bool:
        """Return whether another attempt follows; the task run then waits for it."""
        decision = self.job_run.decide(exc_or_state)
        if decision.retry and not self.can_retry(exc_or_state):
            decision = FORBIDDEN
        if (awaiting := self.prepare_retry(exc_or_state, decision)) is not None:
            self.set_state(awaiting, force=True)
        return decision.retry

    def wait_until_ready(self) -> None:
        """Wait until a retry is due, then for its slot."""
        if (due := self.job_run.take_retry_due()) is None:
            return
        try:
            due.result()
            slot = self.job_run.acquire_slot()
            skipped = self.job_run.skipped_state
            if skipped is not None and not concurrent.futures.wait([slot], IMMEDIATE_RETRY_TIMEOUT).done:
                self.set_state(skipped, force=True)
            slot.result()
        except Exception as error:
            self.job_run.refuse(error)  # Raised by call_task_fn, where the engine expects errors.
            return
        self.set_state(retrying(self.job_run.skipped_state), force=True)
        self.call_hooks()

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table of states; a final state settles the job."""
        named, reporter = self.job_run.name_failure(state), self.job_run.reporter
        entered = self.enter(named, reporter) if reporter else super().set_state(named, force=force)
        self.settle_if_final(entered)
        return entered

    def call_hooks(self, state: State[Any] | None = None) -> None:
        """Call the hooks for `state`; `on_failure` is called for Crashed and OutOfMemory too.

        Prefect calls it for FAILED states only, because in Prefect a crash ends the engine as well. Here the engine
        survives, and those who are notified of failures need to know of crashes.
        """
        entered = state or self.state
        if not entered.is_crashed():
            super().call_hooks(state)
            return
        assert self.task_run is not None, "only a task run enters states"
        for hook in self.task.on_failure_hooks:
            with self.logged_hook_errors(hook):
                result = hook(self.task, self.task_run, entered)
                if asyncio.iscoroutine(result):
                    run_coro_as_sync(result)

    def handle_crash(self, exc: BaseException) -> None:
        """End the job and record it as Cancelled: the engine was interrupted, by a signal for example."""
        running = self.job_run.interrupt(exc)
        if running is not None:
            concurrent.futures.wait([running], timeout=INTERRUPT_TIMEOUT)
        super().handle_crash(exc)
        self.flush()
