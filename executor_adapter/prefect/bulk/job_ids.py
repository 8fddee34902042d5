"""Refuses a job id that comes twice in one flow run, because it is also the id of a task run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, check_is_job

MAX_REMEMBERED_FLOW_RUNS = 8
"""Flow runs whose job ids are remembered, so that a later call in the same flow run cannot use an id again."""

_ids_by_flow_run: OrderedDict[tuple[UUID, int], set[str]] = OrderedDict()


def ids_of(flow_run: FlowRun) -> set[str]:
    """Return the ids of all jobs that this flow run has had; after a retry of the flow run, those since the retry."""
    ids = _ids_by_flow_run.setdefault((flow_run.id, flow_run.run_count), set())
    while len(_ids_by_flow_run) > MAX_REMEMBERED_FLOW_RUNS:
        _ids_by_flow_run.popitem(last=False)
    return ids


def with_unique_ids(jobs: Iterable[Job], known_ids: set[str]) -> Iterable[Job]:
    """Return the jobs after checking that no id comes twice; of a lazy iterable each is checked when it is drawn."""
    if not isinstance(jobs, Collection):
        return _checked(jobs, known_ids)
    for _ in _checked(jobs, checked_ids := set(known_ids)):
        pass
    known_ids |= checked_ids
    return jobs


def _checked(jobs: Iterable[Job], known_ids: set[str]) -> Iterator[Job]:
    for job in jobs:
        check_is_job(job)
        if job.job_id in known_ids:
            raise InvalidJobError(
                f"two jobs of one flow run have the id {job.job_id!r}, which is also the id of the task run: "
                "give each job its own"
            )
        known_ids.add(job.job_id)
        yield job
