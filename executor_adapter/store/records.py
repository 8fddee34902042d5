"""Records: what a store remembers of jobs, how they are selected, and how a job is restored from its record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.exceptions.display import repr_of
from executor_adapter.job import TERMINAL, Attempt, Job, JobState, JobStatus, Progress

LIVE = frozenset(JobStatus) - TERMINAL
"""The statuses of jobs that are not finished."""

JOB_FIELDS = ("job_id", "job_type", "tool_name", "metadata", "priority", "max_runtime")
"""The fields of Job that a record has as fields of its own, under the same names."""
_STATE_FIELDS = tuple(each.name for each in dataclasses.fields(JobState) if each.init)
"""The fields of JobState, all of which a record has under the same names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """Describes one job as a store remembers it. Times are seconds since the epoch, durations are seconds."""

    job_id: str
    queue: str = ""
    """The queue that the job belongs to: "collection" or "processing" for the schedulers, else the executor's `queue`,
    which is "" by default."""
    job_type: str = "job"
    tool_name: str | None = None
    function: str = ""
    """`module:qualname`, for people; what runs is in `call` or `pickled`."""
    status: JobStatus = JobStatus.PENDING
    attempt: int = 0
    """The number of the current or latest attempt, from 1; 0 before the first."""
    crashes: int = 0
    """The number of attempts whose worker or host died."""
    created_at: float = 0.0
    started_at: float | None = None
    """The time at which the first attempt started."""
    completed_at: float | None = None
    """The time at which the job reached a terminal status."""
    retry_at: float | None = None
    """The time at which the next attempt may start; None: at once."""
    error_code: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    """The end of the last traceback; for a time limit where the function was, for a crash the end of its output.
    Lists of a database leave it out: `JobStore.get` has it."""
    records_processed: int | None = None
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    """The finished attempts, oldest first; of more than 100, the first one and the newest."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    max_runtime: float | None = None
    call: str | None = None
    """The fields of Job that were given, as a JSON object, from which another process can run the job. None: no other
    process may, because code outside of the executor drove it (Prefect's engine)."""
    pickled: bytes | None = None
    """(function, args, kwargs) where the store may pickle them; otherwise they are in `call`."""
    host: str | None = None
    """The id of the host that runs the job or ran it; None: no host has it yet."""
    retry_of: str | None = None
    """The id of the job that this one was made from by `retry_job`."""
    quarantined: bool = False
    """Whether it killed more workers than its policy allows; then it runs again only after it was released."""
    unreadable: str | None = None
    """What of the stored row makes no sense. Such a record is FAILED, and its job never runs."""
    job: Job | None = None
    """The job itself, where the store is in the memory of the job's own process."""

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the end; None where the job never started or is not finished."""
        if self.started_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.started_at)

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """(args, kwargs) where they are stored as JSON; None where they are pickled, unreadable or not stored."""
        given = readable_call(self)
        if not given or self.pickled is not None:
            return None
        return given.get("args", []), given.get("kwargs", {})

    def to_job(self) -> Job:
        """Return the job of this record, for reading; a job of this process is returned itself."""
        return self.job if self.job is not None else restore(self)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types, without what runs the job (`call`, `pickled`, `job`)."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_SHOWN}
        return shown | {
            "status": str(self.status),
            "duration": self.duration,
            "progress": None if self.progress is None else dataclasses.asdict(self.progress),
            "attempts": [attempt._asdict() for attempt in self.attempts],
            "metadata": dict(self.metadata),
        }


_NOT_SHOWN = frozenset({"call", "pickled", "job"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Selects the jobs that match every field that is given. Times are seconds since the epoch."""

    statuses: frozenset[JobStatus] | None = None
    queue: str | None = None
    job_type: str | None = None
    tool_name: str | None = None
    retry_of: str | None = None
    """The id of the job that they were made from."""
    created_from: float | None = None
    """Created at this time or later."""
    created_before: float | None = None
    """Created before this time."""
    ended_from: float | None = None
    """Finished at this time or later."""
    ended_before: float | None = None
    """Finished before this time."""
    quarantined: bool | None = None
    text: str | None = None
    """Part of the id, type, tool, function, error code or error message, whatever its case. A store searches for it in
    every job that matches the other fields, without an index."""


SEARCHED = ("job_id", "job_type", "tool_name", "function", "error_code", "error_message")
"""Where `JobFilter.text` is searched for."""
ALL = JobFilter()
"""Selects every job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Holds one part of a list of jobs, newest first unless asked otherwise."""

    records: tuple[JobRecord, ...]
    total: int
    """The number of jobs on all pages together."""
    total_is_exact: bool = True
    """False: there are more than `total` jobs, and the store did not count them all."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """Holds one log record or printed line of a job's function."""

    job_id: str
    attempt: int
    seq: int
    """Orders a job's lines and identifies each."""
    at: float
    """Seconds since the epoch."""
    level: int
    """The level of `logging`; 0 for what was printed."""
    source: str
    """The logger's name, or "stdout" or "stderr"."""
    text: str


MAX_LOG_LINES = 1000
"""Lines that a store keeps of each job's log; it drops the oldest."""


Unpickle = Callable[[bytes], Any]
"""Loads a stored pickle, if it may be loaded."""


def restore(record: JobRecord, unpickle: Unpickle | None = None) -> Job:
    """Return the job as the record has it, with its state.

    Where its function is not stored, or is pickled and cannot be loaded, the job has a MissingFunction: it can be read,
    but not run. Without `unpickle` no pickle is loaded.
    """
    state = JobState(**{name: getattr(record, name) for name in _STATE_FIELDS})
    try:
        return Job.restored(state, **given_fields(record, unpickle))
    except Exception:  # A row may hold anything.
        return Job.restored(state, **_column_fields(record), function=MissingFunction(record.function))


def given_fields(record: JobRecord, unpickle: Unpickle | None = None) -> dict[str, Any]:
    """Return the fields of Job that the job was made with, its id included.

    Raises:
        InvalidJobError: its function is not stored, or cannot be unpickled here.
    """
    fields: dict[str, Any] = _column_fields(record) | call_fields(record)
    if record.pickled is not None:
        return fields | _unpickled(record.job_id, record.pickled, unpickle)
    if "function" not in fields:
        raise InvalidJobError(f"job {record.job_id} has no function in its row")
    return fields


def call_fields(record: JobRecord) -> dict[str, Any]:
    """Return the fields of Job that were given, apart from those with columns of their own; no function is loaded.

    Raises:
        InvalidJobError: they are not stored, or make no sense.
    """
    if record.unreadable is not None:
        raise InvalidJobError(f"job {record.job_id}: {record.unreadable}")
    if record.call is None:
        raise InvalidJobError(
            f"job {record.job_id} was driven from outside the executor: run it again where it came from"
        )
    try:
        fields = json.loads(record.call)
    except ValueError:
        fields = None
    if type(fields) is not dict:
        raise InvalidJobError(f"job {record.job_id}: its call is no JSON object: {record.call[:60]!r}")
    return fields


def readable_call(record: JobRecord) -> dict[str, Any]:
    """Return the same, but nothing where they are not stored or make no sense."""
    try:
        return call_fields(record)
    except InvalidJobError:
        return {}


class MissingFunction:
    """Replaces the function of a job that can be read but not run."""

    def __init__(self, reference: str) -> None:
        self.__module__, _, self.__qualname__ = reference.partition(":")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse the call.

        Raises:
            InvalidJobError: always.
        """
        raise InvalidJobError(f"{self.__module__}:{self.__qualname__} is not stored: make a new job with the function")


def _column_fields(record: JobRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in JOB_FIELDS} | {"metadata": dict(record.metadata)}


def _unpickled(job_id: str, pickled: bytes, unpickle: Unpickle | None) -> dict[str, Any]:
    if unpickle is None:
        raise InvalidJobError(f"job {job_id} is stored pickled, and pickles are loaded by its executor alone")
    try:
        function, args, kwargs = unpickle(pickled)
    except BaseException as error:  # SystemExit too: the module of the function may do anything when it is imported.
        raise InvalidJobError(
            f"job {job_id} cannot be unpickled here: {repr_of(error)}: run it where its code is"
        ) from error
    return {"function": function, "args": args, "kwargs": kwargs}
