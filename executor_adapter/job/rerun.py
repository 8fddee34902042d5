"""Rerun: makes a new job from a finished one, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.model import Job

RETRY_OF = "retry_of"
"""The key in a job's metadata that names the job it was made from."""


def rerun(job: Job, **changes: Any) -> Job:
    """Return a new job like a finished one, linked to it by its metadata.

    Args:
        job: the finished job.
        changes: fields of Job that are different in the new one; `metadata` is merged.

    Raises:
        InvalidJobError: the job is not finished, a change is not a field of Job, or its value could never work.
    """
    if not job.status.is_terminal:
        raise InvalidJobError(f"job {job.job_id} is {job.status}: wait for its end, or cancel it")
    given = {name: getattr(job, name) for name in job.model_fields_set - {"job_id"}}
    if job.retry is not None:
        changes = changed_retry(dict(job.retry), changes) | changes
    metadata = {**job.metadata, **changes.pop("metadata", {}), RETRY_OF: job.job_id}
    return Job(**given | changes | {"metadata": metadata})


def changed_retry(policy: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed field `retry` of a job with this policy; empty where the changes do not touch it.

    Without it, the policy would win over a change of `retry_attempts` or `retry_delay`.
    """
    changed = {name: changes[name] for name in ("retry_attempts", "retry_delay") if name in changes}
    if "retry_delay" in changed:
        changed["delays"] = []
    return {"retry": {**policy, **changed}} if changed else {}
