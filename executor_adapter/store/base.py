"""Where jobs are remembered: the contract of every store, and what it remembers of a job.

    executor ──► recorder ──► JobStore.write          one thread an executor, in batches
    CLI, monitoring, JobQueue ──► get, find, counts   any thread or process

A store is told what became of jobs; it decides nothing. Every method may be called from any thread, blocks while the
database works, and raises StoreUnavailable where that cannot be reached (or is full, or locked): then nothing of the
call has been done.

A job belongs to the host (one executor) that runs it. A host holds a lease, renewed by each of its writes; once that
has run out, or on the same machine as soon as its process is gone and all that ran for it, another host may `claim`
its jobs. A host whose lease was taken writes nothing any more: LeaseLost.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from executor_adapter.job.model import TERMINAL, Attempt, Job, JobStatus, Progress
from executor_adapter.store.host import Host
from executor_adapter.store.records import restore

LIVE = frozenset(JobStatus) - TERMINAL


class StoreUnavailable(Exception):
    """The store cannot be read or written now; what was to be done has not been done."""


class LeaseLost(Exception):
    """The host's lease was taken over: its jobs are another's now, and nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """What is remembered of one job. Times are seconds since the epoch, durations seconds."""

    job_id: str
    queue: str = ""
    """Whose job it is: "collection" or "processing" of a scheduler's, else the executor's `queue`, by default ""."""
    job_type: str = "job"
    tool_name: str | None = None
    function: str = ""
    """`module:qualname`, to be shown; what is run is in `call` or `pickled`."""
    status: JobStatus = JobStatus.PENDING
    attempt: int = 0
    """The number of the attempt that runs or ran last, from 1; 0 before the first."""
    crashes: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    """When its first attempt began."""
    completed_at: float | None = None
    """When it reached its terminal state, whichever that is."""
    retry_at: float | None = None
    """When it may start next, where that is not at once."""
    error_code: str | None = None
    error_message: str | None = None
    records_processed: int | None = None
    progress: Progress | None = None
    attempt_fields: tuple[tuple[Any, ...], ...] = ()
    """Of each attempt that is over the fields of Attempt, in order: most are never looked at."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    max_runtime: float | None = None
    call: str | None = None
    """How to make the job again: the fields of Job that were given, as a JSON object. None: nobody can run it again,
    since it was driven from outside (by Prefect's engine)."""
    pickled: bytes | None = None
    """(function, args, kwargs), where its arguments may be stored so; else they are in `call`."""
    host: str | None = None
    """Who runs it, or ran it; None: nobody yet."""
    retry_of: str | None = None
    """The job that this one was made from by `retry_job`."""
    quarantined: bool = False
    """It killed more workers than its policy allows: it is not run again until it is released."""
    job: Job | None = None
    """The job itself, where it is remembered in the memory of its own process."""

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Each attempt that is over, oldest first."""
        return tuple(Attempt(**dict(zip(_ATTEMPT, fields, strict=False))) for fields in self.attempt_fields)

    @property
    def duration(self) -> float | None:
        """Seconds from the first start to the end; None where it never started, or is not over."""
        if self.started_at is None or self.completed_at is None:
            return None
        return max(0.0, self.completed_at - self.started_at)

    @property
    def arguments(self) -> tuple[list[Any], dict[str, Any]] | None:
        """(args, kwargs) as far as they are stored in words; None where they are pickled or not stored at all."""
        if self.call is None or self.pickled is not None:
            return None
        given = json.loads(self.call)
        return given.get("args", []), given.get("kwargs", {})

    def to_job(self) -> Job:
        """The job as it stands in this record: to be looked at. A live job itself where it is this process's."""
        return self.job if self.job is not None else restore(self)

    def to_json(self) -> dict[str, Any]:
        """All of it but what runs it (`call`, `pickled`, `job`), as JSON's own types."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_SHOWN}
        return shown | {
            "status": str(self.status),
            "duration": self.duration,
            "progress": None if self.progress is None else dataclasses.asdict(self.progress),
            "attempts": [dataclasses.asdict(attempt) for attempt in self.attempts],
            "metadata": dict(self.metadata),
        }


_NOT_SHOWN = frozenset({"call", "pickled", "job", "attempt_fields"})
_ATTEMPT = tuple(field.name for field in dataclasses.fields(Attempt))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are meant: those that match all that is given. Times are seconds since the epoch."""

    statuses: frozenset[JobStatus] | None = None
    queue: str | None = None
    job_type: str | None = None
    tool_name: str | None = None
    created_from: float | None = None
    """Created then or later."""
    created_before: float | None = None
    ended_from: float | None = None
    """Over, since then or later."""
    ended_before: float | None = None
    quarantined: bool | None = None
    text: str | None = None
    """Part of the id, type, tool, function, error code or error message; upper and lower case are the same.
    It is looked for in each job that matches the rest."""


ALL = JobFilter()

LINES_KEPT = 1000
"""Of each job's log a store keeps so many lines, the newest."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a job's function logged or printed: one record or line."""

    job_id: str
    attempt: int
    seq: int
    """Orders the lines of a job, and tells one from another."""
    at: float
    """Seconds since the epoch."""
    level: int
    """As logging has it; that of what was printed is 0."""
    source: str
    """The logger's name, or "stdout" or "stderr"."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list, newest first unless asked otherwise."""

    records: tuple[JobRecord, ...]
    total: int
    """How many jobs match, on all pages together."""
    total_is_exact: bool = True
    """False: more than `total` match, and a store has better things to do than to count them all."""


class JobStore(ABC):
    """See the module."""

    durable: ClassVar[bool]
    """Whether it outlives this process, so that a job must be stored in a way that another process can run."""
    shared: ClassVar[bool] = False
    """Whether hosts of other machines use it. Then a host that cannot renew its lease must stop its jobs in time."""
    pickle_arguments: bool = False
    """Whether jobs may be stored pickled: functions that cannot be imported, arguments that are no JSON."""
    counts_up_to: int = 10_000
    """Of more matching jobs than these `find` need not say how many there are."""
    url: str
    """As `open_store` takes it, without a password."""

    # --- reading ---

    @abstractmethod
    def get(self, job_id: str) -> JobRecord | None: ...

    @abstractmethod
    def find(
        self, wanted: JobFilter = ALL, *, offset: int = 0, limit: int | None = 100, newest_first: bool = True
    ) -> Page:
        """The jobs that match, by their creation."""

    @abstractmethod
    def counts(self, wanted: JobFilter = ALL) -> dict[JobStatus, int]:
        """How many jobs match, by status; every status has an entry."""

    @abstractmethod
    def durations(self, wanted: JobFilter = ALL, *, limit: int = 100_000) -> list[float]:
        """Seconds that jobs took which are over and match, ascending; of the `limit` that ended last."""

    @abstractmethod
    def oldest_waiting(self, wanted: JobFilter = ALL) -> float | None:
        """When the matching job was created that has been PENDING longest."""

    def failure_rate(self, wanted: JobFilter = ALL) -> float | None:
        """The share of FAILED among the matching jobs that are COMPLETED or FAILED; None where there are none.

        For a window: `failure_rate(JobFilter(ended_from=time.time() - 3600))`.
        """
        counts = self.counts(wanted)
        ended = counts[JobStatus.COMPLETED] + counts[JobStatus.FAILED]
        return counts[JobStatus.FAILED] / ended if ended else None

    @abstractmethod
    def lines(self, job_id: str, *, after: int = 0, limit: int = LINES_KEPT) -> list[LogLine]:
        """The job's log, oldest first: the newest `limit` lines of those whose `seq` is greater than `after`."""

    # --- asking something of jobs, from any process ---

    @abstractmethod
    def request_cancel(self, job_id: str) -> bool:
        """Ask the job's host to end it, which it does within seconds; a job without a host is CANCELLED at once.
        False where no live job has this id."""

    @abstractmethod
    def enqueue(self, record: JobRecord) -> None:
        """Leave a PENDING job without a host: the next host of its queue that looks for jobs runs it.

        Raises:
            InvalidJobError: the id is taken.
        """

    @abstractmethod
    def release(self, job_id: str) -> bool:
        """End a job's quarantine, so that it may be run again; False where no quarantined job has this id."""

    @abstractmethod
    def cleanup(self, max_age_hours: float = 24, *, queue: str | None = None) -> int:
        """Forget the jobs that have been over for more than `max_age_hours`; how many that were. Live and quarantined
        ones stay. It works in small steps, between which others write.

        Raises:
            ValueError: `max_age_hours` is no finite number from 0 on.
        """

    # --- for hosts ---

    @abstractmethod
    def register(self, host: Host, *, lease: float) -> None:
        """Begin the lease of a host, for `lease` seconds."""

    @abstractmethod
    def write(
        self, host_id: str, new: Sequence[JobRecord] = (), changed: Sequence[JobRecord] = (), *, lease: float
    ) -> list[str]:
        """Remember the records, all or none, and renew the host's lease; without any it renews alone.

        Of `changed` ones only what changes while a job lives is written. What is another host's by now stays as it
        is: the ids of those are given back. An id that is known may be `new` where its job is over: it is replaced.

        Raises:
            LeaseLost: another host has taken the lease. Nothing is written.
        """

    @abstractmethod
    def write_lines(self, lines: Sequence[LogLine]) -> None:
        """Add to the logs of jobs; of each the newest LINES_KEPT stay, until the job is forgotten."""

    @abstractmethod
    def leave(self, host_id: str) -> None:
        """End the host's lease. What is live of it may be claimed by others at once."""

    @abstractmethod
    def claim(self, host: Host, *, queue: str, limit: int = 100) -> list[JobRecord]:
        """Take over live jobs of `queue` that nobody runs: their host is gone, or they never had one. Each record is
        as its former host left it, but for `host`. No two hosts ever get the same job."""

    @abstractmethod
    def any_host_is_dying(self) -> bool:
        """Whether there is a host on this machine whose process is gone, and not yet all that ran for it: within
        moments its jobs can be claimed."""

    @abstractmethod
    def cancel_requests(self, host_id: str) -> list[str]:
        """The live jobs of the host whose end was asked for."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections. Harmless when closed already."""
