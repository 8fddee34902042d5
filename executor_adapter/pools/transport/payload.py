"""Encodes a job for a worker, when it is submitted and on the submitter's thread."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.exceptions.display import text_of
from executor_adapter.job import GPU
from executor_adapter.pools.transport.functions import EncodedFunction, dump_by_value, encode_function
from executor_adapter.worker import values, wire

if TYPE_CHECKING:
    from executor_adapter.job import Job
    from executor_adapter.pools.base import Assignment


@dataclass(slots=True, eq=False, repr=False)
class Payload:
    """Holds the part of a CALL frame that is the same for every attempt of the job."""

    function: EncodedFunction
    flags: int
    body: bytes
    file: values.MemoryFile | None
    """The memory file of arguments too large for the frame; kept until no attempt can follow."""
    max_runtime: float
    lent: tuple[Any, ...] = ()
    """References that the node must be given beside the call, since their pickle alone is of no use there."""
    near: str | None = None
    """The node that has data of it; None where that does not matter."""


def attempt_part(assignment: Assignment) -> bytes:
    """Return what belongs to this attempt alone, pickled: its scope, checkpoint and environment; b"" for nothing.

    Raises:
        Exception: the argument of its scope cannot be pickled.
    """
    if assignment.scope is None and assignment.checkpoint is None and assignment.environment is None:
        return b""
    return dump_by_value((assignment.scope, assignment.checkpoint, assignment.environment))


Initializer = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that each worker calls before its first job, and its arguments."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def make_payload(job: Job, arguments: Arguments | None = None) -> Payload:
    """Encode the function and arguments of a job. `arguments`: what is sent in their place.

    Raises:
        InvalidJobError: the function is a reference to nothing.
        JobSerializationError: function or arguments cannot be pickled.
    """
    encoded = encode_function(job.function)
    flags = wire.USE_ONCE if encoded.once else 0
    if job.fresh_worker or GPU in (job.resources or ()):  # Libraries keep the GPUs that they found.
        flags |= wire.OWN_WORKER
    args = b""
    file = None
    if job.args or job.kwargs:
        args, file = _encode_arguments(job, arguments or (job.args, job.kwargs))
        flags |= wire.IN_FILE if file is not None else 0
    else:
        flags |= wire.NO_VALUE
    description = _encode_description(job) if job.tool_name or job.metadata else b""
    job_id = job.job_id.encode()
    sizes = wire.CALL_SIZES.pack(len(job_id), len(description), len(args))
    return Payload(encoded, flags, b"".join((sizes, job_id, description, args)), file, job.max_runtime or 0.0)


def _encode_arguments(job: Job, arguments: Arguments) -> tuple[bytes, values.MemoryFile | None]:
    try:
        return values.dump(arguments, dump_by_value)
    except Exception as error:
        raise JobSerializationError(
            f"{_find_culprit(job)} cannot be pickled: {type(error).__name__}: {text_of(error)}: pass something that "
            "describes it instead (a path, a URL, an id), or run the job with pool='thread'"
        ) from error


def _encode_description(job: Job) -> bytes:
    try:
        return dump_by_value((job.tool_name, job.metadata))
    except Exception as error:
        raise JobSerializationError(
            f"the metadata of job {job.job_id} cannot be pickled: {text_of(error)}: use plain values"
        ) from error


def _find_culprit(job: Job) -> str:
    """Return a description of the first argument that cannot be pickled."""
    named: list[tuple[str, Any]] = [(f"argument {n}", value) for n, value in enumerate(job.args, 1)]
    named += [(f"argument {name!r}", value) for name, value in job.kwargs.items()]
    for name, value in named:
        try:
            dump_by_value(value)
        except Exception:
            return f"{name} (a {type(value).__name__})"
    return "the arguments"


def worker_settings(
    *,
    preload: str | tuple[str, ...],
    initializer: Initializer | bytes | None,
    nice: int | None,
    cpu_affinity: tuple[int, ...] | None,
) -> dict[str, Any]:
    """Return the set-up of every worker of a pool, in a form that can be pickled."""
    return {
        "preload": (preload,) if isinstance(preload, str) else tuple(preload),
        "initializer": encode_initializer(initializer),
        "nice": nice,
        "cpu_affinity": cpu_affinity,
        "log_level": min(logging.INFO, logging.getLogger().level or logging.INFO),
    }


def encode_initializer(initializer: Initializer | bytes | None) -> bytes | None:
    """Encode a function and its arguments as one function without arguments, unless that was done already."""
    if initializer is None or isinstance(initializer, bytes):
        return initializer
    function, args = initializer
    return encode_function(functools.partial(function, *args)).encoded
