"""What happens to jobs, as events of Prefect's that automations can react to.

    with JobExecutor() as executor, job_events(executor=executor):
        ...

    event                               when
    executor-adapter.job.failed         no attempt is left, or the error is not one to retry
    executor-adapter.job.timed-out      ... past a limit of time
    executor-adapter.job.crashed        ... its worker died
    executor-adapter.job.out-of-memory  ... it outgrew its memory_limit
    executor-adapter.job.quarantined    ... and it has killed more workers than its policy allows
    executor-adapter.job.retried        an attempt failed, and another follows
    executor-adapter.job.cancelled      ended on request
    executor-adapter.job.completed      only where asked for

The resource is the job, `executor-adapter.job.ID`; the flow run is related to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.default import current_executor
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.retry import CRASHES
from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.prefect.mirror.states import state_kind
from executor_adapter.prefect.reporting.batches import Batches
from executor_adapter.prefect.reporting.events import current_flow_run
from executor_adapter.prefect.reporting.run_summary import JobSnapshot, snapshot_of

PREFIX = "executor-adapter.job."
KINDS = ("failed", "timed-out", "crashed", "out-of-memory", "quarantined", "retried", "cancelled")
"""Those that are told of unless said otherwise."""

ALL_KINDS = (*KINDS, "completed")
EMIT_SECONDS = 0.5

_OF_STATE = {
    "Completed": "completed",
    "Cancelled": "cancelled",
    "TimedOut": "timed-out",
    "Crashed": "crashed",
    "OutOfMemory": "out-of-memory",
    "Failed": "failed",
}


class _Happening(NamedTuple):
    kind: str
    job: JobSnapshot


class JobEvents:
    """An observer of `executor` that emits events; see `job_events`. Made in the flow run, where there is one.

    Raises:
        InvalidJobError: a kind is unknown.
    """

    def __init__(self, executor: JobExecutor, kinds: Iterable[str] = KINDS) -> None:
        self._kinds = frozenset(kinds)
        if unknown := self._kinds.difference(ALL_KINDS):
            raise InvalidJobError(f"{', '.join(sorted(unknown))}: no kind of event: choose of {', '.join(ALL_KINDS)}")
        self._executor = executor
        self._flow_run = current_flow_run()
        self._batches: Batches[_Happening] = Batches(self._emit, EMIT_SECONDS)

    def __call__(self, transition: Transition) -> None:
        if transition.status is JobStatus.RETRYING:
            self._tell("retried", transition)
        elif transition.status.is_terminal:
            code = transition.job.error_code if transition.error is not None else None
            self._tell(_OF_STATE[state_kind(transition.status, error_code=code).name], transition)
            if code in CRASHES and any(transition.job is job for job in self._executor.quarantined()):
                self._tell("quarantined", transition)

    def _tell(self, kind: str, transition: Transition) -> None:
        if kind in self._kinds:
            self._batches.put(_Happening(kind, snapshot_of(transition)))

    def close(self) -> None:
        """Emit what has not been emitted."""
        self._batches.close()

    def _emit(self, happenings: list[_Happening]) -> None:
        related = _related(self._flow_run)
        for kind, job in happenings:
            emit_event(PREFIX + kind, resource=_resource(job), related=related, payload=_payload(job))


def _resource(job: JobSnapshot) -> dict[str, str]:
    about = {"prefect.resource.id": f"{PREFIX}{job.job_id}", "prefect.resource.name": job.tool}
    return about | ({"executor-adapter.error-code": job.error_code} if job.error_code else {})


def _related(flow_run: FlowRun | None) -> list[Any]:
    if flow_run is None:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
            "prefect.resource.role": "flow-run",
            "prefect.resource.name": flow_run.name,
        }
    ]


def _payload(job: JobSnapshot) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "tool": job.tool,
        "status": str(job.status),
        "attempts": job.attempts,
        "duration": job.duration,
        "error_code": job.error_code,
        "error_message": job.message,
    }


@contextlib.contextmanager
def job_events(*, executor: JobExecutor | None = None, kinds: Iterable[str] = KINDS) -> Iterator[JobEvents]:
    """Emit events of what happens in the block to the jobs of an executor; by default the one in force.

    Automations then trigger on `executor-adapter.job.crashed`, for example. They are sent by a thread, in batches.
    """
    executor = executor or current_executor()
    events = JobEvents(executor, kinds)
    executor.add_observer(events)
    try:
        yield events
    finally:
        executor.remove_observer(events)
        events.close()
