"""Shared by the sync and the async task engine.

Prefect's engines keep what they do well: inputs, caching, transactions, hooks, results, tags and their limits, and the
order of states. The subclasses here override public methods only, for what a job does differently: it starts when the
executor has a slot, its attempts run there, `retry.decide` decides on retries, a waiting retry holds no slot, and
final states are named by the table in `mirror.states`.

`JobEngine` holds everything that does not wait. `SyncJobEngine` and `AsyncJobEngine` call it and do the waiting.

Failures are raised, never returned as a State: a returned failure would not raise when the task is called directly,
and a returned Crashed would be committed to the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from opentelemetry import trace
from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import (  # type: ignore[attr-defined]  # Prefect exports these from there on purpose.
    ResultRecord,
    get_result_store,
    should_persist_result,
)
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.task_engine import BaseTaskRunEngine
from prefect.transactions import BaseTransaction, IsolationLevel, Transaction, get_transaction
from prefect.types import DateTime
from prefect.utilities.engine import UNTRACKABLE_TYPES, link_state_to_task_run_result

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import RetryDecision
from executor_adapter.prefect.child.logs import details_of, log_failure
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.engine.new_states import now_like, running
from executor_adapter.prefect.engine.results import as_record, is_surely_absent, with_known_source
from executor_adapter.prefect.mirror.events import is_final
from executor_adapter.prefect.mirror.runs import TaskRunReporter
from executor_adapter.prefect.reporting.events import flush_events
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
class JobEngine(BaseTaskRunEngine[..., Any]):
    """Drives one job; holds the part of both engines that does not wait."""

    job_run: JobRun

    def first_state(self) -> State[Any]:
        """Return the Running state of a first attempt, and note in the task run that it begins."""
        assert self.task_run is not None, "only a task run begins"
        state, flow = running(), FlowRunContext.get()
        self.task_run.start_time = cast(DateTime, state.timestamp)
        if flow is not None and flow.flow_run is not None:
            self.task_run.flow_run_run_count = flow.flow_run.run_count
        return state

    def run_context_fields(self) -> dict[str, Any]:
        """Return the fields of a task run's context within a flow, but for its client and its result store."""
        persist = self.task.persist_result
        if persist is None:
            persist = get_current_settings().tasks.default_persist_result
        return {
            "task": self.task,
            "task_run": self.task_run,
            "parameters": self.parameters,
            "log_prints": False,
            "persist_result": should_persist_result() if persist is None else persist,
            "start_time": now_like(self.state.timestamp),
            "input_keyset": None,
        }

    def attempt_context(self) -> TaskRunContext:
        """Return the context of an attempt: that of the engine, with the resolved parameters."""
        context = TaskRunContext.get()
        assert context is not None, "an engine that runs has a context"
        started = now_like(context.start_time)
        return context.model_copy(update={"start_time": started, "parameters": self.parameters})

    # --- results ---

    def overwrites(self) -> bool:
        """Return whether a result under the same key is replaced instead of used."""
        refresh = self.task.refresh_cache
        return get_current_settings().tasks.refresh_cache if refresh is None else refresh

    def transaction_options(self) -> dict[str, Any]:
        """Return the arguments of the task run's transaction, without a search for a record that is surely absent."""
        policy, store, key = self.task.cache_policy, get_result_store(), self.compute_transaction_key()
        level = policy.isolation_level if isinstance(policy, CachePolicy) else None
        isolation = None if level is None else IsolationLevel(level)
        # A transaction that is serializable, which may be so because its parent is, looks once it has the lock.
        takes_lock = isolation is IsolationLevel.SERIALIZABLE or get_transaction() is not None
        is_absent = key is not None and not takes_lock and is_surely_absent(store, key)
        return {
            "key": key,
            "store": store,
            "overwrite": is_absent or self.overwrites(),
            "logger": self.logger,
            "write_on_commit": should_persist_result(),
            "isolation_level": isolation,
        }

    def compute_transaction_key(self) -> str | None:
        """Return the key of the task run's result; None if it has none."""
        policy, context, flow = self.task.cache_policy, TaskRunContext.get(), FlowRunContext.get()
        known = with_known_source(policy) if isinstance(policy, CachePolicy) and context is not None else None
        if known is None or context is None:
            return super().compute_transaction_key()
        parameters = flow.parameters if flow is not None else None
        try:
            return known.compute_key(context, self.parameters or {}, parameters or {})
        except Exception:
            return super().compute_transaction_key()  # It fails again, and logs why.

    def in_record(self, result: Any, transaction: BaseTransaction) -> Any:
        """Return the record of a function's value, or the value itself where Prefect has to make the record."""
        if self.task.cache_expiration is not None or self.task.result_storage_key is not None:
            return result
        return as_record(result, get_result_store(), transaction.key)

    def settle_if_final(self, state: State[Any]) -> None:
        """End the job in `state`, if the task run stays in it."""
        if self.task_run is not None and _is_final(state):
            self.job_run.settle(state)

    def enter(self, state: State[Any], reporter: TaskRunReporter) -> State[Any]:
        """Enter `state` as `set_state` of Prefect's engines does, and report it through the mirror.

        Prefect's own method would send one event for each state, which costs several times as much, does not wait for
        the server and does not learn whether the event was recorded.
        """
        assert self.task_run is not None, "only a task run enters states"
        run, last = self.task_run, self.state
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
        reporter.report(run, state, last)
        if get_current_settings().cloud.enable_orchestration_telemetry:
            trace.get_current_span().add_event(state.name or state.type.value, _span_attributes(state))
        return state

    def handle_rollback(self, txn: Transaction) -> None:
        """Report that the transaction which the task run belongs to was rolled back."""
        if self.job_run.reporter is None:
            super().handle_rollback(txn)
            return
        assert self.task_run is not None, "only a task run is rolled back"
        rolled_back: State[Any] = Completed(name="RolledBack", message="Task rolled back as part of transaction")
        self.job_run.reporter.report(self.task_run, rolled_back, self.state)

    def flush(self) -> None:
        """Send what was reported so far, because a signal may be about to end the process."""
        if self.job_run.reporter is not None:
            self.job_run.reporter.flush()
        else:
            flush_events()

    def is_unfinished(self) -> bool:
        """Return whether the task run exists without a final state: an error of the engine must not leave it so."""
        return self.task_run is not None and not _is_final(self.state)

    # --- retries ---

    def prepare_retry(self, failure: Exception | State[Any], decision: RetryDecision) -> State[Any] | None:
        """Log how the attempt ended, start the retry if there is one, and return the state to enter for it, if any."""
        self.log_failure(failure, decision)
        if not decision.retry:
            self.job_run.set_failure(failure)
            return None
        awaiting = self.job_run.start_retry(decision)
        self.retries += 1
        return awaiting

    def log_failure(self, failure: BaseException | State[Any], decision: RetryDecision) -> None:
        """Log how the attempt ended and what follows; if nothing follows, with the traceback."""
        error = facts_of(failure) if isinstance(failure, BaseException) else None
        shown = repr_of(failure) if isinstance(failure, BaseException) else repr(failure)
        if decision.retry:
            self.logger.warning(
                "Attempt failed: %s. Next attempt in %.1f s (%s)%s",
                shown,
                decision.delay,
                decision.reason,
                "" if error is None else details_of(error),
            )
            return
        if isinstance(failure, JobCancelledError):
            self.logger.warning("Job cancelled: %s", failure)
            return
        # The words are those of Prefect's own logs.
        last = "Retries are exhausted: " if 0 < self.task.retries <= self.retries else ""
        log_failure(self.logger, f"Job failed: {shown} ({last}{decision.reason})", error)

    # --- hooks ---

    @contextlib.contextmanager
    def logged_hook_errors(self, hook: object) -> Iterator[None]:
        """Log an exception of `hook` instead of raising it."""
        try:
            yield
        except Exception:
            self.logger.exception("An error was encountered while running hook %r", hook)


def _is_final(state: State[Any]) -> bool:
    """Return whether a task run stays in `state`."""
    return is_final(state.type.value, state.name or "")


def _span_attributes(state: State[Any]) -> dict[str, str]:
    """Return the attributes that Prefect's engines give the event of a state in the task run's span."""
    return {
        "prefect.state.message": state.message or "",
        "prefect.state.type": state.type.value,
        "prefect.state.name": state.name or state.type.value,
        "prefect.state.id": str(state.id),
    }
