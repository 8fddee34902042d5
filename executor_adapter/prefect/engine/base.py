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
from datetime import timedelta
from typing import Any, cast

from opentelemetry import trace
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.results import ResultRecord  # type: ignore[attr-defined]  # Prefect exports it from there on purpose.
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.task_engine import BaseTaskRunEngine
from prefect.transactions import Transaction
from prefect.types import DateTime
from prefect.utilities.engine import link_state_to_task_run_result

from executor_adapter.exceptions import JobCancelledError
from executor_adapter.job import RetryDecision
from executor_adapter.prefect.child.logs import details_of, log_failure
from executor_adapter.prefect.engine.job_run import JobRun
from executor_adapter.prefect.mirror.flow_run_mirrors import TaskRunReporter
from executor_adapter.prefect.mirror.state_events import is_final
from executor_adapter.prefect.reporting.events import flush_events

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
    flow_run = FlowRunContext.get()
    if flow_run is not None:
        flow_run.flow_run_suspension_request.raise_if_requested()


@dataclass(kw_only=True)
class JobEngine(BaseTaskRunEngine[..., Any]):
    """Drives one job; holds the part of both engines that does not wait."""

    job_run: JobRun

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
            run.total_run_time += state.timestamp - last.timestamp
        if state.is_running():
            run.run_count += 1
        if state.is_final():
            if run.end_time is None:  # Of a task run that was cancelled while queued too: Prefect leaves it without.
                run.end_time = cast(DateTime, state.timestamp)
            data: Any = state.data
            link_state_to_task_run_result(state, data.result if isinstance(data, ResultRecord) else data)
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
            self.job_run.reporter.hurry()
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
        if decision.retry:
            self.logger.warning(
                "Attempt failed: %r. Next attempt in %.1f s (%s)%s",
                failure,
                decision.delay,
                decision.reason,
                details_of(failure),
            )
            return
        if isinstance(failure, JobCancelledError):
            self.logger.warning("Job cancelled: %s", failure)
            return
        error = failure if isinstance(failure, BaseException) else None
        # The words are those of Prefect's own logs.
        last = "Retries are exhausted: " if 0 < self.task.retries <= self.retries else ""
        log_failure(self.logger, f"Job failed: {failure!r} ({last}{decision.reason})", error)

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
