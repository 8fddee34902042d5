"""Serialization: a job as a record, with what another process needs to run it.

A function is stored by its name and its arguments as JSON. So a store holds only text that can be read, and running a
stored job runs nothing but code that the program has. A store may be asked to keep functions and arguments pickled
where that is not enough.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from executor_adapter.exceptions import InvalidJobError, JobSerializationError
from executor_adapter.exceptions.display import text_of
from executor_adapter.job import RETRY_OF, TERMINAL, Job, JobStatus, RetryPolicy, function_reference, resolve, storable
from executor_adapter.pools.transport import functions, importable
from executor_adapter.store import JOB_FIELDS, JobRecord, SignedPickles

_IN_COLUMNS = frozenset(JOB_FIELDS) | {"function", "args", "kwargs", "retry"}
"""Fields of a job that are stored apart from the other ones of its call."""


class StoredCall(NamedTuple):
    """Holds what another process needs to run a job, as in JobRecord; `call` is None if no other process may run it."""

    function: str
    call: str | None = None
    pickled: bytes | None = None


def stored_call(job: Job, pickles: SignedPickles | None = None) -> StoredCall:
    """Return what another process needs to run the job; its function and arguments pickled if there are `pickles`.

    Raises:
        InvalidJobError: its function cannot be imported elsewhere or an argument is not JSON; the message says what to
            do.
        JobSerializationError: its function or an argument cannot be pickled.
    """
    fields: dict[str, Any] = {name: getattr(job, name) for name in job.model_fields_set - _IN_COLUMNS}
    if job.retry is not None:
        fields["retry"] = _policy_fields(job.retry)
    if pickles is not None:
        return StoredCall(function_reference(job.function), json.dumps(fields), pickles.sign(_pickled(job)))
    fields["function"] = function = _importable(job)
    if job.args or job.kwargs:
        refuse_unless_json(job)
        fields["args"], fields["kwargs"] = job.args, job.kwargs
    return StoredCall(function, json.dumps(fields))


def _pickled(job: Job) -> bytes:
    try:
        return functions.dump_by_value((job.function, job.args, job.kwargs))
    except Exception as error:
        raise JobSerializationError(
            f"the function or the arguments of job {job.job_id} cannot be pickled: {type(error).__name__}: "
            f"{text_of(error)}: pass something that describes them instead (a path, an id, a text)"
        ) from error


@functools.lru_cache(maxsize=256)
def _policy_fields(policy: RetryPolicy) -> dict[str, Any]:
    return policy.model_dump(mode="json", exclude_defaults=True)


def _importable(job: Job) -> str:
    function = job.function
    if isinstance(function, str):
        resolve(function)
        return function
    found = importable.importable_reference(function)
    if found is None:
        raise InvalidJobError(
            f"{function_reference(function)} cannot be stored: another process would not find it by that name: "
            "define it at the top of a module that can be imported, or set store.pickle_arguments to true"
        )
    return found


def refuse_unstorable_texts(job: Job) -> None:
    """Refuse a job whose id, type, tool or metadata no database can hold.

    Raises:
        InvalidJobError: a text has characters that are not valid Unicode text, or the metadata is not JSON.
    """
    for name in ("job_id", "job_type", "tool_name"):
        text = getattr(job, name)
        if text is not None and storable(text) != text:
            raise InvalidJobError(
                f"{name}={text!r} cannot be stored: remove the NUL characters and the lone surrogates"
            )
    if job.metadata and (found := _not_json(job.metadata)) is not None:
        raise InvalidJobError(f"metadata cannot be stored: it holds {found}: use plain JSON values")


def refuse_unless_json(job: Job) -> None:
    """Refuse a job with an argument that would not be the same after it was written as JSON and read again.

    Raises:
        InvalidJobError: the message names the argument and what it holds.
    """
    named = [(f"argument {n}", value) for n, value in enumerate(job.args, 1)]
    named += [(f"argument {name!r}", value) for name, value in job.kwargs.items()]
    for name, value in named:
        if (found := _not_json(value)) is not None:
            raise InvalidJobError(
                f"{name} cannot be stored as JSON: it holds {found}: pass something that describes it instead "
                "(a path, an id, a text), or set store.pickle_arguments to true"
            )


_JSON_TYPES = (str, int, bool, type(None))
MAX_NESTING = 200
"""Lists and dicts within one another that are stored; whoever reads them has a limit too."""


def _not_json(value: Any) -> str | None:
    """Describe the first part of `value` that JSON would not give back as it is; None where there is none."""
    nested: list[Iterator[Any]] = [iter((value,))]
    while nested:
        if len(nested) > MAX_NESTING:
            return f"lists or dicts that nest more than {MAX_NESTING} deep, perhaps in themselves"
        for part in nested[-1]:
            kind = type(part)
            if kind is list or kind is dict:
                if kind is dict and (key := next((key for key in part if type(key) is not str), None)) is not None:
                    return f"the key {key!r}"
                nested.append(iter(part if kind is list else part.values()))
                break
            if kind is float and not math.isfinite(part):
                return repr(part)
            if kind is not float and kind not in _JSON_TYPES:
                return f"a {kind.__name__}"
        else:
            nested.pop()
    return None


def plain(record: JobRecord) -> JobRecord:
    """Return the record with nothing that its function made or its caller gave, in a form that each store holds."""
    note = None if record.error_code is None else "the error cannot be stored: the log of its program has it"
    return dataclasses.replace(
        record,
        error_message=note,
        traceback=None,
        records_processed=None,
        progress=None,
        attempts=(),
        metadata={},
    )


def record_of(
    job: Job, status: JobStatus, *, queue: str, host: str, stored: StoredCall, quarantined: bool, keep: bool
) -> JobRecord:
    """Return the job's record as it stands, in `status`; with `keep`, the record holds the job itself."""
    state = job.state
    retry_of = job.metadata.get(RETRY_OF)
    return JobRecord(
        job_id=job.job_id,
        queue=queue,
        job_type=job.job_type,
        tool_name=job.tool_name,
        function=stored.function,
        status=status,
        attempt=state.attempt,
        crashes=state.crashes,
        created_at=state.created_at,
        started_at=state.started_at,
        completed_at=state.completed_at if status in TERMINAL else None,
        retry_at=state.retry_at if state.completed_at is None else None,
        error_code=state.error_code,
        error_message=state.error_message,
        records_processed=state.records_processed,
        progress=state.progress,
        attempts=state.attempts,
        metadata=job.metadata,
        priority=job.priority,
        max_runtime=job.max_runtime,
        call=stored.call,
        pickled=stored.pickled,
        host=host,
        retry_of=retry_of if isinstance(retry_of, str) else None,
        quarantined=quarantined,
        job=job if keep else None,
    )
