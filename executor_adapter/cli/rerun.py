"""Makes a new job from the stored record of a finished one, without importing its function."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import RETRY_OF, TERMINAL, Job, JobStatus, changed_retry, did_you_mean, uuid7
from executor_adapter.store import JobFilter, JobRecord, JobStore, call_fields

_IN_COLUMNS = frozenset({"job_type", "tool_name", "priority", "max_runtime"})
"""Fields of a job that have columns of their own in its record; the others are in its call."""
MAX_PRIORITY = 2**63 - 1
"""Databases have integers of 64 bits."""
_NOT_ITS_OWN = frozenset({"job_id", "function", "metadata"})


FieldsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the job; may be repeated.")
]


def changes_of(given: Sequence[str] | None) -> dict[str, Any]:
    """Return the fields that FIELD=VALUE arguments set; a value is JSON, or else text.

    Raises:
        typer.BadParameter: There is no "=", no such field, or the field cannot be changed.
    """
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, _ in pairs:
        if not equals:
            raise typer.BadParameter(f"--set {name!r} has no value: give FIELD=VALUE")
        if name in _NOT_ITS_OWN:
            raise typer.BadParameter(f"--set {name!r}: it cannot be changed: submit a new job instead")
        if name not in Job.model_fields:
            fields = [field for field in Job.model_fields if field not in _NOT_ITS_OWN]
            raise typer.BadParameter(f"--set {name!r} is not a field of Job: {did_you_mean(name, fields)}")
    return {name: value_of(text) for name, _, text in pairs}


def value_of(text: str) -> Any:
    """Return `text` parsed as JSON, or the text itself where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def rerun_record(record: JobRecord, changes: Mapping[str, Any]) -> JobRecord:
    """Return a PENDING record like that of a finished job, with a new id and `changes`.

    Raises:
        InvalidJobError: The job is not finished, is quarantined, or cannot run from its record alone; or a field cannot
            have the value given.
        typer.BadParameter: The priority is too large for a store.
    """
    _refuse_unfit(record, changes)
    given = Job(**{"function": "builtins:print"} | dict(changes))
    if abs(given.priority) > MAX_PRIORITY:
        raise typer.BadParameter(f"priority={given.priority} is too large for a store: give at most {MAX_PRIORITY}")
    call = call_fields(record)
    if "retry" in call:
        changes = changed_retry(call["retry"], changes) | dict(changes)
    columns = {name: getattr(given if name in changes else record, name) for name in _IN_COLUMNS}
    return JobRecord(
        **columns,
        **{name: getattr(record, name) for name in ("queue", "function", "pickled")},
        job_id=uuid7(),
        created_at=time.time(),
        metadata={**record.metadata, RETRY_OF: record.job_id},
        call=json.dumps(call | {name: value for name, value in changes.items() if name not in _IN_COLUMNS}),
        retry_of=record.job_id,
    )


def live_rerun(store: JobStore, job_id: str | None) -> JobRecord | None:
    """Return the job that was made from this one and has not ended yet; None where there is none."""
    found = store.find(JobFilter(statuses=frozenset(JobStatus) - TERMINAL, retry_of=job_id), limit=1).records
    return found[0] if found else None


def _refuse_unfit(record: JobRecord, changes: Mapping[str, Any]) -> None:
    if record.unreadable is not None:
        raise InvalidJobError(f"job {record.job_id}: {record.unreadable}")
    if record.status not in TERMINAL:
        raise InvalidJobError(f"job {record.job_id} is {record.status}: wait for its end, or cancel it")
    if record.quarantined:
        raise InvalidJobError(f"job {record.job_id} is quarantined: run `jobs release {record.job_id}` first")
    if record.call is None:
        raise InvalidJobError(f"job {record.job_id} ran inside a Prefect flow: run that flow again")
    if record.pickled is not None and {"args", "kwargs"} & changes.keys():
        raise InvalidJobError(f"job {record.job_id} has pickled arguments: they cannot be changed here")
