"""What is remembered of a job: its record, and the words in which another process can make it again.

A function is stored by its name and arguments as JSON, so that no store holds what cannot be read, and nothing runs
from it but what the program has. Where that is not enough a store may be asked to keep them pickled.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.functions import resolve
from executor_adapter.job.model import TERMINAL, Job, JobStatus, function_reference
from executor_adapter.job.retry import RetryPolicy
from executor_adapter.pools.transport import functions, importable
from executor_adapter.store.base import JobRecord

RETRY_OF = "retry_of"
"""The key of a job's metadata that names the job it was made from."""

_IN_COLUMNS = frozenset(
    {"function", "job_id", "job_type", "tool_name", "metadata", "priority", "max_runtime", "args", "kwargs", "retry"}
)


class StoredCall(NamedTuple):
    """What of a job another process needs to run it; see JobRecord. `call` is None where nobody is to run it again."""

    function: str
    call: str | None = None
    pickled: bytes | None = None


def stored_call(job: Job, *, pickle_arguments: bool = False) -> StoredCall:
    """
    Raises:
        InvalidJobError: its function cannot be imported elsewhere, or an argument is no JSON; with the way out.
    """
    refuse_unstorable_texts(job)
    fields: dict[str, Any] = {name: getattr(job, name) for name in job.model_fields_set - _IN_COLUMNS}
    if job.retry is not None:
        fields["retry"] = _policy(job.retry)
    if pickle_arguments:
        pickled = functions.dumps((job.function, job.args, job.kwargs))
        return StoredCall(shown_function(job), json.dumps(fields), pickled)
    fields["function"] = function = _importable(job)
    if job.args or job.kwargs:
        refuse_unless_json(job)
        fields["args"], fields["kwargs"] = job.args, job.kwargs
    return StoredCall(function, json.dumps(fields))


def shown_function(job: Job) -> str:
    function = job.function
    return function if isinstance(function, str) else function_reference(function)


@functools.lru_cache(maxsize=256)
def _policy(policy: RetryPolicy) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude_defaults=True)


def _importable(job: Job) -> str:
    function = job.function
    if isinstance(function, str):
        resolve(function)
        return function
    found = importable.reference(function)
    if found is None:
        raise InvalidJobError(
            f"{function_reference(function)} cannot be stored: another process would not find it by that name: "
            "define it at the top of a module that can be imported, or have the store pickle (pickle_arguments)"
        )
    return found


def refuse_unstorable_texts(job: Job) -> None:
    """
    Raises:
        InvalidJobError: a text that names the job is none that a database can hold, or its metadata is no JSON.
    """
    for name in ("job_id", "job_type", "tool_name"):
        text = getattr(job, name)
        if text is not None and not _is_text(text):
            raise InvalidJobError(f"{name}={text!r} cannot be stored: leave out characters that are no text")
    if job.metadata and (found := _not_json(job.metadata)) is not None:
        raise InvalidJobError(f"metadata cannot be stored: it holds {found}: use plain values")


def _is_text(text: str) -> bool:
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def refuse_unless_json(job: Job) -> None:
    """
    Raises:
        InvalidJobError: an argument would not be the same after it was written as JSON and read again.
    """
    named = [(f"argument {n}", value) for n, value in enumerate(job.args, 1)]
    named += [(f"argument {name!r}", value) for name, value in job.kwargs.items()]
    for name, value in named:
        if (found := _not_json(value)) is not None:
            raise InvalidJobError(
                f"{name} cannot be stored as JSON: it holds {found}: pass something that describes it instead "
                "(a path, an id, a text), or have the store pickle (pickle_arguments)"
            )


_JSON = (str, int, bool, type(None))


def _not_json(value: Any) -> str | None:
    """What in `value` would not come back as it is from JSON; None where all would."""
    kind = type(value)
    if kind in _JSON:
        return None
    if kind is float:
        return None if math.isfinite(value) else repr(value)
    if kind is list:
        return next((found for part in value if (found := _not_json(part)) is not None), None)
    if kind is dict:
        if (key := next((key for key in value if type(key) is not str), None)) is not None:
            return f"the key {key!r}"
        return _not_json(list(value.values()))
    return f"a {kind.__name__}"


def record_of(
    job: Job, status: JobStatus, *, queue: str, host: str, stored: StoredCall, quarantined: bool, keep: bool
) -> JobRecord:
    """The job as it stands, in `status`; with the job itself, to `keep` it."""
    live = job._live
    return JobRecord(
        job_id=job.job_id,
        queue=queue,
        job_type=job.job_type,
        tool_name=job.tool_name,
        function=stored.function,
        status=status,
        attempt=live.attempt,
        crashes=live.crashes,
        created_at=live.created_at,
        started_at=live.started_at,
        completed_at=live.completed_at if status in TERMINAL else None,
        retry_at=live.retry_at,
        error_code=live.error_code,
        error_message=live.error_message,
        records_processed=live.records_processed,
        progress=live.progress,
        attempt_fields=live.attempts or (),
        metadata=job.metadata,
        priority=job.priority,
        max_runtime=job.max_runtime,
        call=stored.call,
        pickled=stored.pickled,
        host=host,
        retry_of=job.metadata.get(RETRY_OF),
        quarantined=quarantined,
        job=job if keep else None,
    )


def made_again(job: Job, **changes: Any) -> Job:
    """A new job like one that is over, linked to it by its metadata; `changes` are fields of Job.

    Raises:
        InvalidJobError: it is not over.
        pydantic.ValidationError: a change is no field of Job, or its value is none that could ever work.
    """
    if not job.status.is_terminal:
        raise InvalidJobError(f"job {job.job_id} is {job.status}: wait for its end, or cancel it")
    given = {name: getattr(job, name) for name in job.model_fields_set - {"job_id"}}
    if job.retry is not None:
        changes = policy_changed(dict(job.retry), changes) | changes
    metadata = {**job.metadata, **changes.pop("metadata", {}), RETRY_OF: job.job_id}
    return Job(**given | changes | {"metadata": metadata})


def policy_changed(policy: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The field `retry` of a job of that policy whose `retry_attempts` or `retry_delay` is changed: the policy would
    win over them."""
    changed = {name: changes[name] for name in ("retry_attempts", "retry_delay") if name in changes}
    if "retry_delay" in changed:
        changed["delays"] = []
    return {"retry": {**policy, **changed}} if changed else {}
