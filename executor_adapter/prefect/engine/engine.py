"""JobEngine: Prefect's task engine, driving one job from a thread that may block.

Prefect's engine keeps what it does well: inputs, caching, transactions, hooks, results, tags and their limits, and the
order of states. The subclass here overrides public methods only, for what a job does differently: it starts when the
executor has a slot, its attempts run there, `retry.decide` decides on retries, a waiting retry holds no slot, and
final states are named by the table in `mirror.states`.

Failures are raised, never returned as a State: a returned failure would not raise when the task is called directly,
and a returned Crashed would be committed to the cache.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self, cast

from opentelemetry import trace
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.concurrency.context import ConcurrencyContext
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import (  # type: ignore[attr-defined]  # Prefect exports these from there on purpose.
    ResultRecord,
)
from prefect.settings import get_current_settings
from prefect.states import Completed, Retrying
from prefect.task_engine import SyncTaskRunEngine
from prefect.telemetry.run_telemetry import RunTelemetry
from prefect.transactions import Transaction
from prefect.types import DateTime
from prefect.utilities.engine import UNTRACKABLE_TYPES, link_state_to_task_run_result

from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.job import RetryDecision
from executor_adapter.prefect.cancellation.flow_end import call_hooks
from executor_adapter.prefect.child.logs import log_failed_attempt
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.task_runs import JobResultStore
from executor_adapter.prefect.mirror.events import is_final
from executor_adapter.worker.facts import facts_of

TIMESTAMP_STEP = timedelta(microseconds=1)

IMMEDIATE_RETRY_TIMEOUT = 1.0
"""Seconds within which a retry without a delay must have its slot to skip AwaitingRetry, as Prefect's retries do."""

INTERRUPT_TIMEOUT = 15.0
"""Seconds for which an interrupted engine waits for its job to be dead; longer than the executor's kill_grace."""

FORBIDDEN = RetryDecision(retry=False, reason="its retry_condition_fn returned False")


def raise_if_suspended() -> None:
    """Leave the flow if its flow run was suspended meanwhile, as Prefect's engines do after each task.

    Raises:
        Pause: it was.
    """
    request = getattr(FlowRunContext.get(), "flow_run_suspension_request", None)
    if request is not None:  # Only newer Prefects have it in a flow run's context.
        request.raise_if_requested()


@dataclass(kw_only=True)
class JobEngine(SyncTaskRunEngine[..., Any]):
    """Drives one job, of a function or of a coroutine function: that runs in the executor, so its engine may block."""

    job_run: JobRun

    # --- the beginning ---

    def begin_run(self) -> None:
        """Wait for a slot; the task run is Pending until it has one."""
        assert self.task_run is not None, "the engine makes the task run before it begins"
        try:
            self.job_run.open(self.task_run, self.parameters or {})
            self.job_run.notify_started()
        except Exception as error:
            self.handle_exception(self.job_run.refuse(error))
            return
        super().begin_run()

    # --- contexts ---

    @contextlib.contextmanager
    def setup_run_context(self, client: SyncPrefectClient | None = None) -> Iterator[None]:
        """Set up the task run's context, with a result store that does less."""
        with super().setup_run_context(client):
            context = TaskRunContext.get()
            assert context is not None, "it has just been set up"
            with context.model_copy(update={"result_store": JobResultStore.like(context.result_store)}):
                yield

    @contextlib.contextmanager
    def run_context(self) -> Iterator[Self]:
        """Set up the context of an attempt, without Prefect's timer: `timeout_seconds` is a limit of the job."""
        context = TaskRunContext.get()
        assert context is not None, "an engine that runs has a context"
        update = {"start_time": self.state.timestamp, "parameters": self.parameters}
        with context.model_copy(update=update), ConcurrencyContext():
            try:
                yield self
            except TimeoutError as error:
                self.handle_timeout(error)
            except Exception as error:
                self.handle_exception(error)

    # --- attempts ---

    def call_task_fn(self, transaction: Transaction) -> Any:
        """Run one attempt and return its value; a cached result needs no attempt."""
        # A cached result counts even for a job that is refused: a committed transaction that fails keeps its lock.
        result = transaction.read() if transaction.is_committed() else self._attempt()
        self.job_run.value = result
        self.handle_success(result, transaction=transaction)
        return result

    def _attempt(self) -> Any:
        assert self.task_run is not None, "only a task run has attempts"
        if self.job_run.refusal is not None:
            raise self.job_run.refusal
        return self.job_run.attempt(self.task_run, self.logger)

    # --- retries ---

    def handle_retry(self, exc_or_state: Exception | State[Any]) -> bool:
        """Return whether another attempt follows; the task run then waits for it."""
        decision = self.job_run.decide(exc_or_state)
        if decision.retry and not self.can_retry(exc_or_state):
            decision = FORBIDDEN
        self._log_failure(exc_or_state, decision)
        if not decision.retry:
            self.job_run.failure = exc_or_state if isinstance(exc_or_state, BaseException) else None
            return False
        awaiting = self.job_run.start_retry(decision)
        self.retries += 1
        if awaiting is not None:
            self.set_state(awaiting, force=True)
        return True

    def _log_failure(self, failure: BaseException | State[Any], decision: RetryDecision) -> None:
        """Log how the attempt ended and what follows."""
        # The words are those of Prefect's own logs.
        error, shown = None, repr(failure)
        if isinstance(failure, BaseException):
            error = facts_of(failure)
            # Where the facts have another text, the worker has masked a secret that only it knows.
            shown = repr_of(failure) if text_of(failure) in error.text else error.text
        last = "Retries are exhausted: " if not decision.retry and 0 < self.task.retries <= self.retries else ""
        log_failed_attempt(
            self.logger,
            shown,
            error,
            delay=decision.delay if decision.retry else None,
            reason=f" ({last}{decision.reason})",
        )

    def wait_until_ready(self) -> None:
        """Wait until a retry is due, then for its slot."""
        try:
            if (slot := self.job_run.ask_for_retry()) is None:
                return
            skipped = self.job_run.skipped_state
            if skipped is not None and not concurrent.futures.wait([slot], IMMEDIATE_RETRY_TIMEOUT).done:
                self.set_state(skipped, force=True)
            slot.result()
        except Exception as error:
            self.job_run.refuse(error)  # Raised by call_task_fn, where the engine expects errors.
            return
        self.set_state(Retrying(message=skipped and skipped.message), force=True)
        self.call_hooks()

    # --- states ---

    def set_state(self, state: State[Any], force: bool = False) -> State[Any]:
        """Enter `state`, named by the table of states, as Prefect's engines do; a final state settles the job.

        Prefect's own method would send one event for each state, which costs several times as much, does not wait for
        the server and does not learn whether the event was recorded.
        """
        assert self.task_run is not None, "only a task run enters states"
        run, last, state = self.task_run, self.state, self.job_run.name_failure(state)
        # The server accepts only states newer than the last one, and the clock may have been set back.
        if state.timestamp <= last.timestamp:
            state.timestamp = last.timestamp + TIMESTAMP_STEP
        state.state_details.task_run_id, state.state_details.flow_run_id = run.id, run.flow_run_id
        run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
        if last.is_running():
            run.total_run_time += datetime.__sub__(state.timestamp, last.timestamp)  # Pendulum's is 200 times slower.
        if state.is_running():
            run.run_count += 1
        if state.is_final():
            if run.end_time is None:  # Of a task run that was cancelled while queued too: Prefect leaves it without.
                run.end_time = cast(DateTime, state.timestamp)
            data: Any = state.data
            value = data.result if isinstance(data, ResultRecord) else data
            if type(value) not in UNTRACKABLE_TYPES:  # Of these it links none, which takes it a while to find out.
                link_state_to_task_run_result(state, value)
        self.job_run.reporter.report(run, state, last)
        span = trace.get_current_span()
        if span.is_recording() and get_current_settings().cloud.enable_orchestration_telemetry:
            RunTelemetry(span=span).update_state(state)
        if not self.is_unfinished():
            self.job_run.settle(state)
        return state

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
        call_hooks(self.task.on_failure_hooks, self.logger, self.task, self.task_run, entered)

    def handle_rollback(self, txn: Transaction) -> None:
        """Report that the transaction which the task run belongs to was rolled back."""
        assert self.task_run is not None, "only a task run is rolled back"
        rolled_back: State[Any] = Completed(name="RolledBack", message="Task rolled back as part of transaction")
        self.job_run.reporter.report(self.task_run, rolled_back, self.state)

    # --- the end ---

    def handle_crash(self, exc: BaseException) -> None:
        """End the job and record it as Cancelled: the engine was interrupted, by a signal for example."""
        running = self.job_run.interrupt(exc)
        if running is not None:
            concurrent.futures.wait([running], timeout=INTERRUPT_TIMEOUT)
        super().handle_crash(exc)

    def is_unfinished(self) -> bool:
        """Return whether the task run exists without a final state: an error of the engine must not leave it so."""
        return self.task_run is not None and not is_final(self.state.type.value, self.state.name or "")
