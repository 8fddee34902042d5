"""Gives the functions of `run_jobs` their Prefect contexts, and sends their messages to the logs of the task runs."""

from __future__ import annotations

import contextvars
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from prefect.context import FlowRunContext
from prefect.logging.loggers import task_run_logger

from executor_adapter.job import JobStatus, RetryPolicy, Transition
from executor_adapter.pools.base import Assignment
from executor_adapter.prefect.child.logs import log_failed_attempt, log_message, patch_print
from executor_adapter.prefect.child.payload import compact, flow_run_payload
from executor_adapter.prefect.child.task_run_context import IN_PROCESS_POOLS, TASK_RUN_SCOPE, TASK_RUN_SCOPE_HERE
from executor_adapter.prefect.mirror.events import flow_run_facts, iso
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.states import state_kind
from executor_adapter.prefect.mirror.timeline import JobHistory, step_of
from executor_adapter.prefect.options.retries import prefect_retry_options
from executor_adapter.prefect.reporting.background import BackgroundCalls


class FlowRunScope:
    """Holds what all jobs of one `run_jobs` share; it is made in the flow run's context."""

    def __init__(self, context: FlowRunContext, flow_run_id: UUID) -> None:
        # A line through Prefect's handlers takes longer than a short job, and the supervisor must not wait for it.
        self.log = BackgroundCalls("task-run-logs")
        self.flow_run_id = flow_run_id
        self.context = contextvars.copy_context()
        facts = flow_run_facts()
        self.shared = f'"flow_run_id":"{facts.id}","flow_run_run_count":{facts.run_count},"tags":{facts.tags}'
        """The fields that all task runs share, as JSON without the braces."""
        self.log_prints = context.log_prints
        self.payload = json.dumps(flow_run_payload(context))
        if context.log_prints:
            patch_print()

    def write(self, history: JobHistory, write: Callable[..., None], *args: Any, **options: Any) -> None:
        """Call `write(logger, *args, **options)` soon, with the logger of a task run; the lines stay in order."""

        def line() -> None:
            run: Any = SimpleNamespace(id=history.id, name=json.loads(history.name), flow_run_id=self.flow_run_id)
            write(task_run_logger(run, task=run), *args, **options)

        self.log.put(line)


@dataclass(slots=True, eq=False)
class BulkJobScope:
    """The scope of one job of `run_jobs`: gives each attempt its task run and logs its messages."""

    flow: FlowRunScope
    history: JobHistory
    index: int
    """The index of the job's result."""
    receives: bool = True

    def prepare(self, assignment: Assignment) -> None:
        """Put the task run around the function: with the flow run in a worker, in the flow run's own context here."""
        payload = self._payload(assignment)
        if assignment.job.live.pool in IN_PROCESS_POOLS:
            assignment.context = self.flow.context.copy()
            assignment.scope = (TASK_RUN_SCOPE_HERE, payload)
        else:
            assignment.scope = (TASK_RUN_SCOPE, payload)

    def mirror(self, mirror: TaskRunMirror, transition: Transition) -> None:
        """Show a transition of the job in its task run."""
        mirror.enqueue_step(self.history, step_of(transition))

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Write log records and output of the function to the log of the task run."""
        if topic in ("log", "output"):
            self.flow.write(self.history, log_message, topic, content, log_prints=self.flow.log_prints)

    def log_failure(self, transition: Transition) -> None:
        """Log how an attempt failed or was cancelled, and what follows."""
        job, error = transition.job, transition.error
        if error is not None and (transition.status is not JobStatus.CANCELLED or job.state.attempt):
            delay = None if (due := job.retry_at) is None else max(0.0, due.timestamp() - transition.at)
            self.flow.write(self.history, log_failed_attempt, error.text, error, delay=delay)

    def _payload(self, assignment: Assignment) -> str:
        """Return the JSON for `task_run_scope`, formatted by hand because every attempt needs its own."""
        run, flow, job = self.history, self.flow, assignment.job
        started = iso(job.state.started_at or run.created_at)
        return (
            f'{{"task_run":{{"id":"{run.id}","name":{run.name},"task_key":{run.task_key},'
            f'"dynamic_key":{run.dynamic_key},"run_count":{assignment.number},"start_time":"{started}",'
            f'"expected_start_time":"{iso(run.created_at)}",{_state_of_retry(assignment)}{flow.shared}}},'
            f'"task":{_task_facts(job.policy, job.max_runtime)},"persist_result":false,'
            f'"log_prints":{json.dumps(flow.log_prints)},"flow":{flow.payload}}}'
        )


def _state_of_retry(assignment: Assignment) -> str:
    """Return the state of an attempt after the first, as JSON; without one, the state is Running from the start on."""
    if assignment.number == 1:
        return ""
    kind = state_kind(JobStatus.RUNNING, attempt=assignment.number)
    return f'"state":{{"type":"{kind.type.value}","name":"{kind.name}","timestamp":"{iso(time.time())}"}},'


@functools.lru_cache(maxsize=64)
def _task_facts(policy: RetryPolicy, max_runtime: float | None) -> str:
    """Return the attributes of the task that shows a job, as `payload.task_facts` does, as JSON within JSON."""
    return json.dumps(compact({"plain": {**prefect_retry_options(policy), "timeout_seconds": max_runtime}}))
