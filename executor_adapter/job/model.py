"""Job: one call of a function, with its limits, its retry policy and its live state."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self, SupportsIndex, Unpack

from pydantic import ConfigDict, Field

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.html import html_of_job
from executor_adapter.job.ids import uuid7
from executor_adapter.job.live_state import MAX_ATTEMPTS, JobState, LiveState, running_clock
from executor_adapter.job.mistakes import Model, call_text, shown, unknown_field
from executor_adapter.job.options import JobOptions
from executor_adapter.job.pool_names import PoolName
from executor_adapter.job.resources import Resources
from executor_adapter.job.results import Attempt, Progress
from executor_adapter.job.retry import CRASHES, RetryPolicy, in_force
from executor_adapter.job.status import LEGAL_TRANSITIONS, TERMINAL, JobStatus
from executor_adapter.job.validation import Count, Delay, FunctionField, MemoryLimit, Retries, Seconds


class Job(Model):
    """Describes one call of a function, with its limits and its retry policy, and shows its current state.

    The fields are what the caller asks for. The read-only properties are live: they show the job's state while it runs.
    All durations are seconds; all times are aware and in UTC. A number may be given as text, as the environment has it:
    "60" is 60; type checkers ask for a number. Two jobs are equal only if they are the same object.

    Raises:
        InvalidJobError: a field is unknown, or its value could never work; also where a field is set later, or by
            `model_copy(update=...)`. The message is one line. Pydantic's own `model_validate` raises ValidationError.
    """

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, validate_assignment=True, use_attribute_docstrings=True
    )

    no_fields: ClassVar[dict[str, Any]]  # See the metaclass of `Model`.

    function: FunctionField
    """The function to call, or its reference `"package.module:function"`. The only required field."""
    job_id: str = Field(default_factory=uuid7, min_length=1)
    """The id of the job: by default a UUID of version 7, which sorts by age."""
    job_type: str = "job"
    """A name for the kind of job, for lists and metrics."""
    tool_name: str | None = None
    """The tool or source that the job works for; limits of a tool apply to all jobs with its name."""
    args: tuple[Any, ...] = ()
    """The positional arguments of the call."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """The keyword arguments of the call."""
    pool: PoolName = "auto"
    """The pool that runs the job: "coroutine", "thread", "process", or, on other machines, "ssh", "dask" or "ray";
    "auto" runs coroutine functions as coroutines and all others in a thread."""
    max_runtime: Seconds | None = 3600.0
    """Seconds that one attempt may run. A hard limit: past it the attempt is killed, as TIMEOUT_ERROR. As in each field
    of numbers, "60" counts as 60, since configurations hold text; a type checker marks it in a program."""
    soft_timeout: Seconds | None = None
    """Seconds after which SoftTimeoutError is raised inside the function, so that it can clean up."""
    queue_timeout: Seconds | None = None
    """Seconds from submit within which the first attempt must start, else the job fails as QUEUE_TIMEOUT."""
    stall_timeout: Seconds | None = None
    """Seconds after which an attempt is killed whose function has not called `current_job().progress`."""
    deadline: Seconds | None = None
    """Seconds from submit to the end, all attempts and waits together, else the job fails as DEADLINE_EXCEEDED."""
    retry_attempts: Retries = 3
    """The number of retries that may follow the first attempt."""
    retry_delay: Delay = 60.0
    """Seconds before the first retry; the delay doubles with each further one."""
    retry: RetryPolicy | None = None
    """The retry policy. It wins over `retry_attempts` and `retry_delay`."""
    memory_limit: MemoryLimit = None
    """Bytes, or text such as "512MiB", that the process tree of an attempt may use; pool="process" only."""
    resources: Resources = None
    """What an attempt needs beside a slot, by name: `{"CPU": 2, "GPU": 1, "memory": "4GiB", "license": 1}`. It starts
    when the executor has so much left of its `capacity`; GPUs need pool="process"."""
    fresh_worker: bool = False
    """Run each attempt in a process of its own, which runs no job before or after it: certainty that it finds nothing
    that another job left, for a fork of a millisecond. Other jobs share workers, in which most of what a function
    changes is put back. Not in threads and coroutines."""
    keep: bool = False
    """With pool="dask" or pool="ray": leave the result on the cluster, and return a reference to it (a Dask future, an
    ObjectRef). A later job that has it among its arguments gets the value. Pools of this machine return the value."""
    priority: Count = 0
    """Jobs with a higher priority start first; among equals the order of submission counts."""
    dedupe_key: str | None = None
    """While a job with this key is live, submitting another one returns the future of the first."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Free for the caller: kept with the job, shown, never interpreted."""

    # Slots, since every transition reads them: a private attribute of pydantic's takes 20 times as long.
    __slots__ = ("live", "state")
    if TYPE_CHECKING:  # What type checkers see: arguments as they may be given, and properties instead of fields.

        def __init__(
            self,
            *,
            function: Callable[..., Any] | str,
            args: tuple[Any, ...] | list[Any] = (),
            kwargs: Mapping[str, Any] = ...,
            job_id: str = ...,
            **options: Unpack[JobOptions],
        ) -> None: ...

        @property
        def state(self) -> JobState:
            """The job's state: its status, attempts, times and error."""

        @property
        def live(self) -> LiveState:
            """The supervisor's own data about the job while it is live."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        # Every way to a new job leads here: validation, copies and pickles too.
        job = super().__new__(cls)
        _set_slot(job, "state", JobState())
        _set_slot(job, "live", LiveState())
        return job

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return super().__reduce_ex__(max(2, int(protocol)))  # Below 2, unpickling calls no `__new__`.

    @classmethod
    def restored(cls, state: JobState, **fields: Any) -> Self:
        """Make a job that was stored, from its fields and the state that it had.

        Raises:
            InvalidJobError: a field is unknown, or its value could never work.
        """
        job = cls(**fields)
        _set_slot(job, "state", state)
        return job

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a new pending job with these fields, changed by `update`. Its id is the same unless updated.

        Raises:
            InvalidJobError: `update` names an unknown field, or has a value that could never work.
        """
        copied = super().model_copy(deep=deep)
        for name, value in (update or {}).items():
            if name not in type(self).model_fields:
                raise InvalidJobError(unknown_field(name, type(self)))
            setattr(copied, name, value)
        return copied

    @classmethod
    def by_name(cls, positional: Sequence[Any], fields: Mapping[str, Any]) -> str:
        """Return, as code, the Job that a function and its arguments by position probably mean."""
        function, *args = positional
        if len(args) == 1 and isinstance(args[0], tuple | list):
            args = list(args[0])
        return call_text("Job", {"function": function} | ({"args": tuple(args)} if args else {}) | dict(fields))

    # By identity, as every object: jobs are keys of many dicts, and a method in Python would cost each look-up.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _repr_html_(self) -> str:
        return html_of_job(self)

    # --- read-only and live ---

    @property
    def status(self) -> JobStatus:
        """The state that the job is in."""
        return self.state.status

    @property
    def attempt(self) -> int:
        """The number of the current or last attempt, from 1; 0 before the first."""
        return self.state.attempt

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The finished attempts, oldest first; of more than 100, the first one and the newest."""
        return self.state.attempts

    @property
    def created_at(self) -> datetime:
        """The time at which the job was made."""
        return datetime.fromtimestamp(self.state.created_at, UTC)

    @property
    def started_at(self) -> datetime | None:
        """The time at which the first attempt began."""
        return _aware(self.state.started_at)

    @property
    def completed_at(self) -> datetime | None:
        """The time at which the job reached its terminal state."""
        return _aware(self.state.completed_at)

    @property
    def retry_at(self) -> datetime | None:
        """The time at which the next attempt is due, while RETRYING."""
        return None if self.state.status in TERMINAL else _aware(self.state.retry_at)

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the end, or to now while the job is live; None before the start."""
        if self.state.started_at is None:
            return None
        if self.state.completed_at is None and self.state.began is not None:
            return max(0.0, running_clock() - self.state.began)
        return max(0.0, (self.state.completed_at or time.time()) - self.state.started_at)

    @property
    def records_processed(self) -> int | None:
        """The number of collected or processed records that the function's result states."""
        return self.state.records_processed

    @property
    def progress(self) -> Progress | None:
        """The progress that the function last reported."""
        return self.state.progress

    @property
    def error_code(self) -> str | None:
        """The error code of the last attempt; None if it returned."""
        return self.state.error_code

    @property
    def error_message(self) -> str | None:
        """The class and the text of the last attempt's error; None where it returned."""
        return self.state.error_message

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy in force: `retry`, else one of `retry_attempts` and `retry_delay`."""
        return in_force(self.retry or _simple_policy(self.retry_attempts, self.retry_delay))

    # --- for the supervisor alone: the writers of a job's state ---

    def advance(
        self,
        status: JobStatus,
        *,
        ago: float = 0.0,
        retry_at: float | None = None,
        records_processed: int | None = None,
    ) -> None:
        """Enter `status`; RUNNING begins the next attempt, `ago` seconds before now.

        `retry_at` is when the next attempt is due, in seconds since the epoch. `records_processed` is the count that
        the result states. Returning to PENDING takes the attempt back.

        Raises:
            InvalidJobError: the transition is not legal.
        """
        state = self.state
        if status not in LEGAL_TRANSITIONS[state.status]:
            raise InvalidJobError(f"job {self.job_id} is {state.status}: it cannot become {status}")
        if status is JobStatus.RUNNING:
            self.note_start(ago)
        elif status in TERMINAL:
            # By the wall clock as it was at the start: setting it changes no duration.
            since_start = None if state.began is None else running_clock() - state.began
            state.completed_at = time.time() if since_start is None else (state.started_at or 0.0) + since_start
            state.records_processed = state.records_processed if records_processed is None else records_processed
        elif status is JobStatus.PENDING:
            state.attempt -= 1
            if not state.attempt:
                state.started_at = state.began = None
        # Kept at the end: where a shutdown ends the job, the next host waits until then.
        state.status, state.retry_at = status, retry_at if state.completed_at is None else state.retry_at

    def note_start(self, ago: float = 0.0) -> None:
        """Count one more attempt, which began `ago` seconds ago."""
        state = self.state
        state.attempt += 1
        state.attempt_started_at = time.time() - ago
        if state.started_at is None:
            state.started_at, state.began = state.attempt_started_at, running_clock() - ago

    def record_attempt(self, attempt: Attempt) -> None:
        """Add a finished attempt."""
        state = self.state
        state.attempts = (*state.attempts[:1], *state.attempts[1:][2 - MAX_ATTEMPTS :], attempt)
        state.error_code, state.error_message = attempt.error_code, attempt.error_message
        state.crashes += attempt.error_code in CRASHES

    def record_error(self, code: str | None, message: str | None) -> None:
        """Note why the job fails; None and None where the last attempt returned."""
        self.state.error_code, self.state.error_message = code, message

    def report_progress(self, progress: Progress) -> None:
        """Note the progress that the running function reported."""
        self.state.progress = progress


# `help(Job)` shows no docstrings of fields.
Job.__doc__ = f"{Job.__doc__}\n    Fields:\n" + "".join(
    f"        {name}: {' '.join((field.description or '').split())}\n" for name, field in Job.model_fields.items()
)


class _Fields:
    """An object whose attributes, set one by one, have the names of a job's fields."""

    def __init__(self) -> None:
        for name in Job.model_fields:
            setattr(self, name, None)


Job.no_fields = vars(_Fields())


_set_slot = object.__setattr__


RETRY_OF = "retry_of"
"""The key in a job's metadata that names the job it was made from."""

NEW_ID_HINT = "use another id: job.model_copy(update={'job_id': ...})"
"""The advice in messages about an id that is taken."""


def check_is_job(given: Any) -> None:
    """Check that `given` is a job.

    Raises:
        InvalidJobError: it is something else, such as the function of a job.
    """
    if not isinstance(given, Job):
        name = shown(given) if callable(given) else "work"
        raise InvalidJobError(f"{shown(given)} is not a Job: make one, Job(function={name}, args=(...))")


def check_is_new(job: Job) -> None:
    """Check that a job was not submitted before.

    Raises:
        InvalidJobError: it was.
    """
    if job.live.future is not None or job.state.status is not JobStatus.PENDING:
        own_id = " with an id of its own, job.model_copy(update={'job_id': ...})"
        copy = ", job.model_copy()" if job.status in TERMINAL else own_id
        raise InvalidJobError(f"job {job.job_id} was submitted already: submit a copy{copy}")


def check_are_jobs(given: Any) -> None:
    """Check that `given` is an iterable of jobs; `check_is_job` checks each one when it is drawn.

    Raises:
        InvalidJobError: it is a single Job, whose fields could be iterated over, or cannot be iterated over.
    """
    if isinstance(given, Job):
        raise InvalidJobError(f"job {given.job_id} is a single Job: pass a list, [job]")
    if not isinstance(given, Iterable):
        raise InvalidJobError(f"{given!r} is not iterable: pass a list or an iterator of Jobs")


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


def _aware(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


@functools.lru_cache(maxsize=256)
def _simple_policy(retry_attempts: int, retry_delay: float) -> RetryPolicy:
    return RetryPolicy(retry_attempts=retry_attempts, retry_delay=retry_delay)
