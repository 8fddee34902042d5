"""Job: what is to be run and under which limits; and the states it passes through.

    PENDING ──► RUNNING ──► COMPLETED
       ▲  │      │ │ │ └──► FAILED
       │  │      │ │ └────► CANCELLED
       └──┼──────┘ ▼
          │     RETRYING ──► RUNNING
          └──► FAILED, CANCELLED, COMPLETED (a cached result)

RUNNING falls back to PENDING, or to RETRYING, when its worker died before it began: no attempt is counted.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.retry import RetryPolicy, in_force
from executor_adapter.job.validation import Count, Delay, Retries, Seconds, no_bool

if TYPE_CHECKING:
    from executor_adapter.supervision.futures import JobFuture


class JobStatus(StrEnum):
    """Where a job stands."""

    PENDING = "pending"
    """Queued, from the moment it is submitted."""
    RUNNING = "running"
    """An attempt is under way."""
    RETRYING = "retrying"
    """An attempt failed; the next one has a time."""
    COMPLETED = "completed"
    """The function returned."""
    FAILED = "failed"
    """No attempt is left, or the error is not one to retry."""
    CANCELLED = "cancelled"
    """Ended on request; nothing of it runs any more."""

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})

LEGAL_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset({JobStatus.RUNNING}) | TERMINAL,
    JobStatus.RUNNING: frozenset({JobStatus.RETRYING, JobStatus.PENDING}) | TERMINAL,
    JobStatus.RETRYING: frozenset({JobStatus.RUNNING}) | TERMINAL,
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class ErrorCode(StrEnum):
    """Why an attempt failed; a plain string of the user's own is a code too."""

    TIMEOUT_ERROR = "TIMEOUT_ERROR"
    """Past max_runtime or soft_timeout, or the function raised a TimeoutError."""
    QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
    """Not started within queue_timeout."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """Past the deadline over all attempts."""
    NETWORK_ERROR = "NETWORK_ERROR"
    """The other side could not be reached."""
    API_ERROR = "API_ERROR"
    """The other side answered, with an error that may pass."""
    REQUEST_ERROR = "REQUEST_ERROR"
    """The other side refused what was asked of it (HTTP 4xx): it would again. Not retried."""
    RATE_LIMITED = "RATE_LIMITED"
    """The other side asked to slow down (HTTP 429)."""
    DATA_ERROR = "DATA_ERROR"
    """The data is broken: a retry would find it so again. Not retried."""
    CONFIGURATION_ERROR = "CONFIGURATION_ERROR"
    """Set up wrongly. Not retried."""
    SERIALIZATION_ERROR = "SERIALIZATION_ERROR"
    """Cannot travel to or from a worker. Not retried."""
    WORKER_CRASHED = "WORKER_CRASHED"
    """The worker's process died under the job."""
    MEMORY_LIMIT = "MEMORY_LIMIT"
    """The attempt's process tree outgrew memory_limit."""
    CANCELLED = "CANCELLED"
    """Ended on request. Not retried."""
    COLLECTION_ERROR = "COLLECTION_ERROR"
    """A DataCollectionException without a code of its own."""
    PROCESSING_ERROR = "PROCESSING_ERROR"
    """A DataProcessingException without a code of its own."""
    EXECUTION_ERROR = "EXECUTION_ERROR"
    """Any other exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt of a job, over. Times in seconds, sizes in bytes."""

    number: int
    pool: str
    pid: int | None
    queue_seconds: float
    run_seconds: float
    kill_seconds: float | None = None
    """From the limit or the cancel until nothing of it was alive; None where it ended by itself."""
    peak_rss: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    error_code: str | None = None
    error_message: str | None = None


_ATTEMPT_FIELDS = tuple(field.name for field in dataclasses.fields(Attempt))


class Transition(NamedTuple):
    """A job entered `status`; observers are told of each, in order. `at` is in seconds since the epoch."""

    job: Job
    previous: JobStatus | None
    """None where the job was submitted just now."""
    status: JobStatus
    at: float
    attempt: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended: what `map` and `run_jobs` give for each."""

    job_id: str
    status: JobStatus
    value: Any = None
    error: BaseException | None = None
    error_code: str | None = None
    attempts: int = 0
    duration: float | None = None
    """Seconds from the first start to the end; None where it never started."""

    def unwrap(self) -> Any:
        """The value; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class LiveState:
    """What changes in a job. Only `Job.advance` and the supervisor write to it.

    The second half is the supervisor's own: what it needs to know of a job while the job is live.
    """

    __slots__ = (
        "alone",
        "assignment",
        "attempt",
        "attempts",
        "checkpoint",
        "completed_at",
        "crashes",
        "created_at",
        "driver",
        "error_code",
        "error_message",
        "future",
        "memory_limit",
        "payload",
        "place",
        "pool",
        "progress",
        "queued_at",
        "records_processed",
        "retry_at",
        "started_at",
        "status",
        "surroundings",
        "timers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status = JobStatus.PENDING
        self.attempt = 0
        self.attempts: tuple[tuple[Any, ...], ...] | None = None
        """Each one's fields in order: most are never looked at, so an Attempt is made of them when asked for."""
        self.created_at = time.time()
        self.started_at: float | None = None
        self.completed_at: float | None = None
        self.retry_at: float | None = None
        self.records_processed: int | None = None
        self.progress: Progress | None = None
        self.error_code: str | None = None
        self.error_message: str | None = None

        self.alone = False
        self.assignment: Any = None
        self.checkpoint: bytes | None = None
        self.crashes = 0
        self.driver: Any = None
        self.future: JobFuture | None = None
        self.memory_limit: int | None = None
        self.payload: Any = None
        self.pool = ""
        self.queued_at = 0.0
        self.place = False
        self.surroundings: Any = None
        self.timers: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running function last said of itself."""

    done: float
    total: float | None = None
    message: str = ""


class _Uuid7:
    """Makes ids. What is random in them is made for many at once: a system call for each takes longer than the rest."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # else parent and child would make the same ids

    def _forget(self) -> None:
        self._random: list[str] = []
        self._time: tuple[int, str] = (0, "")

    def __call__(self) -> str:
        """A UUID of version 7 (RFC 9562): its first 48 bits are the time in milliseconds, so ids sort by age."""
        now = time.time_ns() // 1_000_000
        milliseconds, digits = self._time
        if now != milliseconds:
            digits = f"{now >> 16:08x}-{now & 0xFFFF:04x}-7"
            self._time = now, digits
        try:
            return digits + self._random.pop()
        except IndexError:
            self._random.extend(self._fresh(255))
            return digits + self._fresh(1)[0]

    @staticmethod
    def _fresh(count: int) -> list[str]:
        """What follows the version in so many ids; the first two bits of its second group are the variant."""
        digits = os.urandom(10 * count).hex()
        drawn = (digits[at : at + 20] for at in range(0, 20 * count, 20))
        return [f"{d[:3]}-{'89ab'[int(d[3], 16) & 3]}{d[4:7]}-{d[8:]}" for d in drawn]


uuid7 = _Uuid7()


def _check_function(value: Any) -> Any:
    if callable(value) or (isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value)):
        return value
    raise ValueError(f"{value!r} is no function: give a callable, or a reference such as 'package.module:function'")


_UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def _check_memory_limit(value: Any) -> Any:
    if not isinstance(value, str):
        return no_bool(value)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size: give bytes, or a number with one of {', '.join(filter(None, _UNITS))}")
    size = float(match[1]) * _UNITS[match[2]]
    if size > LARGEST_MEMORY:
        raise ValueError(f"{value[:20]!r} is more than any machine has: leave the limit out")
    return int(size)


def _check_holds_python(size: int) -> int:
    if size < LEAST_MEMORY_LIMIT:
        least = f"{LEAST_MEMORY_LIMIT >> 20}MiB"
        raise ValueError(
            f"{size} bytes hold no Python process: give at least {least}, or a text with a unit ('512MiB')"
        )
    return size


LEAST_MEMORY_LIMIT = 8 << 20
"""Bytes. An interpreter that has imported nothing holds more."""
LARGEST_MEMORY = 1 << 60

MemoryLimit = Annotated[
    Annotated[int, AfterValidator(_check_holds_python)] | None,
    BeforeValidator(_check_memory_limit),
]
PoolName = Literal["auto", "coroutine", "thread", "process"]


class Job(BaseModel):
    """One call of one function, with its limits and what has become of it.

    Fields are what the caller asks for; the read-only properties say what came of it and are live. Seconds
    throughout; times are aware and in UTC. Two jobs are equal only if they are the same object.

    `max_runtime`: hard, of one attempt. `soft_timeout`: SoftTimeoutError is raised inside the function, to clean up.
    `stall_timeout`: ends an attempt whose function has not called `current_job().progress` for so long.
    `queue_timeout`: from submit to start. `deadline`: from submit to the end, all attempts and waits together.
    `memory_limit`: bytes, or text such as "512MiB", of the attempt's process tree; pool="process".
    `retry`: wins over `retry_attempts` and `retry_delay`. `dedupe_key`: a live job with the same key is returned
    instead of a second one.

    Raises:
        pydantic.ValidationError: a field is unknown, or its value is none that could ever work; also where a field is
            set later, or by `model_copy(update=...)`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_assignment=True)

    function: Annotated[Any, BeforeValidator(_check_function)]
    job_id: str = Field(default_factory=uuid7, min_length=1)
    job_type: str = "job"
    tool_name: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pool: PoolName = "auto"
    max_runtime: Seconds | None = 3600.0
    soft_timeout: Seconds | None = None
    queue_timeout: Seconds | None = None
    stall_timeout: Seconds | None = None
    deadline: Seconds | None = None
    retry_attempts: Retries = 3
    retry_delay: Delay = 60.0
    retry: RetryPolicy | None = None
    memory_limit: MemoryLimit = None
    priority: Count = 0
    dedupe_key: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    __slots__ = ("_live",)
    # A slot, since every transition reads it: a private attribute of pydantic's takes 20 times as long. Pydantic would
    # make it one if it saw the annotation.
    if TYPE_CHECKING:
        _live: LiveState

    def model_post_init(self, context: Any, /) -> None:
        object.__setattr__(self, "_live", LiveState())

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        object.__setattr__(self, "_live", LiveState())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A job of its own, pending; with the id of this one, unless `update` has another.

        Raises:
            InvalidJobError: `update` names no field of a job.
            pydantic.ValidationError: `update` has a value that could never work.
        """
        copied = super().model_copy(deep=deep)
        for name, value in (update or {}).items():
            if name not in type(self).model_fields:
                raise InvalidJobError(_no_field(name, type(self).model_fields))
            setattr(copied, name, value)
        return copied

    def __copy__(self) -> Job:
        """A copy is a job of its own: pending, whatever has become of the original."""
        copied = super().__copy__()
        object.__setattr__(copied, "_live", LiveState())
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Job:
        copied = super().__deepcopy__(memo)
        object.__setattr__(copied, "_live", LiveState())
        return copied

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @field_serializer("function")
    def _function_reference(self, function: Any) -> str:
        return function if isinstance(function, str) else function_reference(function)

    # --- read-only and live ---

    @property
    def status(self) -> JobStatus:
        return self._live.status

    @property
    def attempt(self) -> int:
        """The number of the attempt that runs or ran last, from 1; 0 before the first."""
        return self._live.attempt

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Each attempt that is over, oldest first."""
        return tuple(Attempt(**dict(zip(_ATTEMPT_FIELDS, record, strict=True))) for record in self._live.attempts or ())

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self._live.created_at, UTC)

    @property
    def started_at(self) -> datetime | None:
        """When the first attempt began."""
        return _aware(self._live.started_at)

    @property
    def completed_at(self) -> datetime | None:
        """When the job reached its terminal state, whichever that is."""
        return _aware(self._live.completed_at)

    @property
    def retry_at(self) -> datetime | None:
        """When the next attempt is due, while RETRYING."""
        return _aware(self._live.retry_at)

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the end, or to now while it is live; None before the start."""
        if self._live.started_at is None:
            return None
        return max(0.0, (self._live.completed_at or time.time()) - self._live.started_at)

    @property
    def records_processed(self) -> int | None:
        return self._live.records_processed

    @property
    def progress(self) -> Progress | None:
        return self._live.progress

    @property
    def error_code(self) -> str | None:
        return self._live.error_code

    @property
    def error_message(self) -> str | None:
        return self._live.error_message

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy in force: `retry`, else one of `retry_attempts` and `retry_delay`."""
        return in_force(self.retry or _simple_policy(self.retry_attempts, self.retry_delay))

    def advance(self, status: JobStatus, *, at: float | None = None) -> None:
        """Enter `status` at the wall-clock time `at` (seconds since the epoch; default now).

        The one writer of a job's state; called by the supervisor alone.

        Raises:
            InvalidJobError: no legal transition leads there.
        """
        live = self._live
        if status not in LEGAL_TRANSITIONS[live.status]:
            raise InvalidJobError(f"job {self.job_id} is {live.status}: it cannot become {status}")
        live.status = status
        if status is JobStatus.RUNNING:
            if live.started_at is None:
                live.started_at = time.time() if at is None else at
        elif status in TERMINAL:
            live.completed_at = time.time() if at is None else at
        if status is not JobStatus.RETRYING:
            live.retry_at = None


NEW_ID = "give another: job.model_copy(update={'job_id': ...})"
"""The way out where an id is taken."""


def check_is_job(given: Any) -> None:
    """
    Raises:
        InvalidJobError: it is none, but the function of one, say.
    """
    if type(given) is not Job and not isinstance(given, Job):
        name = getattr(given, "__name__", "work") if callable(given) else "work"
        raise InvalidJobError(f"{given!r} is no Job: make one, Job(function={name}, args=(...))")


def check_are_jobs(given: Any) -> None:
    """For who takes many; each is checked by `check_is_job` when it is drawn.

    Raises:
        InvalidJobError: it is one Job (which could be gone through, by its fields), or cannot be gone through.
    """
    if isinstance(given, Job):
        raise InvalidJobError(f"job {given.job_id} is one Job, and many are wanted: give a list of it, [job]")
    if not isinstance(given, Iterable):
        raise InvalidJobError(f"{given!r} cannot be gone through: give a list or an iterator of Jobs")


def _no_field(name: str, fields: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    return f"{name!r} is no field of a job: {f'did you mean {near[0]}? ' if near else ''}they are {', '.join(fields)}"


def _aware(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


@functools.lru_cache(maxsize=256)
def _simple_policy(retry_attempts: int, retry_delay: float) -> RetryPolicy:
    return RetryPolicy(retry_attempts=retry_attempts, retry_delay=retry_delay)


def function_reference(function: Callable[..., Any]) -> str:
    """`module:qualname` of a function; of a partial, a bound method or an object, as near as it comes."""
    inner = function.func if isinstance(function, functools.partial) else function
    qualname = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}:{qualname}"
