"""The contract of every store.

    executor ──► recorder ──► JobStore.write          one thread for each executor, in batches
    CLI, monitoring, JobQueue ──► get, find, counts   any thread or process

A store records the states of jobs; it decides nothing. Every method may be called from any thread, blocks while the
database works, and raises StoreUnavailableError where the database cannot be reached, is full or is locked: then the
call has changed nothing.

A job belongs to the host (one executor) that runs it. A host holds a lease, which each of its writes renews. Another
host may `claim` the jobs of a host whose lease has expired; on the same machine, it may as soon as the host's process
and all that ran for it are gone. A host whose lease was taken writes nothing any more: LeaseLostError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

from executor_adapter.job import JobStatus, ToolLimit
from executor_adapter.store.host import Host
from executor_adapter.store.pickles import SignedPickles
from executor_adapter.store.records import ALL, MAX_LOG_LINES, JobFilter, JobRecord, LogLine, Page
from executor_adapter.store.tools import SharedTools, ToolAsk, ToolShare

Refuse = Callable[[JobRecord], str | None]
"""Returns why a job must be left to other hosts; None if it may be claimed."""


class StoreUnavailableError(Exception):
    """The store cannot be read or written now; the call has changed nothing."""


class LeaseLostError(Exception):
    """Another host has taken over the lease and the jobs; nothing was written."""


class Written(NamedTuple):
    """What `JobStore.write` has found out."""

    taken: Sequence[str] = ()
    """The ids of the jobs that belong to another host by now; their records stay as they are."""
    shares: Mapping[str, ToolShare] = {}
    """What the host has got of the tools that it asked for, by name."""
    tools: SharedTools | None = None
    """What the shares were decided from."""


class JobStore(ABC):
    """Remembers jobs, their logs and the hosts that run them; see the module for what all methods have in common."""

    durable: ClassVar[bool]
    """Whether the store outlives this process: another one must be able to run its jobs, and may do so once the lease
    is over. So a host that cannot renew its lease stops its jobs in time."""
    counts_up_to: int = 10_000
    """`find` need not count more matching jobs than this."""
    shares_tools: ClassVar[bool] = False
    """Whether limits of tools hold over all executors of the store; the methods under "tools" need this."""
    url: str
    """The URL as `open_store` takes it, without a password."""

    # --- reading ---

    @abstractmethod
    def get(self, job_id: str) -> JobRecord | None:
        """Return the job with this id; None where there is none."""

    @abstractmethod
    def find(
        self, wanted: JobFilter = ALL, *, offset: int = 0, limit: int | None = 100, newest_first: bool = True
    ) -> Page:
        """Return one page of the jobs that match, ordered by their creation."""

    @abstractmethod
    def counts(self, wanted: JobFilter = ALL) -> dict[JobStatus, int]:
        """Return the number of jobs that match, by status; every status has an entry."""

    @abstractmethod
    def durations(self, wanted: JobFilter = ALL, *, limit: int = 100_000) -> list[float]:
        """Return the durations of the finished jobs that match, ascending; of the `limit` that finished last."""

    @abstractmethod
    def oldest_waiting(self, wanted: JobFilter = ALL) -> float | None:
        """Return when the oldest PENDING job that matches was created; None where there is none."""

    def failure_rate(self, wanted: JobFilter = ALL) -> float | None:
        """Return the share of FAILED among the matching jobs that are COMPLETED or FAILED; None where there are none.

        For the last hour: `failure_rate(JobFilter(ended_from=time.time() - 3600))`.
        """
        counts = self.counts(wanted)
        ended = counts[JobStatus.COMPLETED] + counts[JobStatus.FAILED]
        return counts[JobStatus.FAILED] / ended if ended else None

    @abstractmethod
    def lines(self, job_id: str, *, after: int = 0, limit: int = MAX_LOG_LINES) -> list[LogLine]:
        """Return the newest `limit` lines of the job's log whose `seq` is greater than `after`, oldest first."""

    # --- requests, from any process ---

    @abstractmethod
    def request_cancel(self, job_id: str) -> bool:
        """Ask the job's host to cancel it, which it does within seconds; False where no live job has this id.

        A job without a host is CANCELLED at once, and one whose host is gone when another host looks for jobs.
        """

    @abstractmethod
    def enqueue(self, record: JobRecord) -> None:
        """Add a PENDING job without a host; the next host of its queue that looks for jobs runs it.

        Raises:
            InvalidJobError: the id is taken.
        """

    @abstractmethod
    def release(self, job_id: str) -> bool:
        """End a job's quarantine, so that it may run again; False where no quarantined job has this id."""

    @abstractmethod
    def sign_again(self, pickles: SignedPickles) -> tuple[int, list[str]]:
        """Sign what is pickled with the first of the keys; return how many, and the ids of those that no key signed."""

    @abstractmethod
    def cleanup(self, max_age_hours: float = 24, *, queue: str | None = None) -> int:
        """Delete the jobs that finished more than `max_age_hours` ago; return how many.

        Live and quarantined jobs stay. It works in small steps, between which others write.

        Raises:
            ValueError: `max_age_hours` is not a finite number of at least 0.
        """

    # --- for hosts ---

    @abstractmethod
    def register(self, host: Host, *, lease: float) -> None:
        """Begin the lease of a host, for `lease` seconds."""

    @abstractmethod
    def write(
        self,
        host_id: str,
        new: Sequence[JobRecord] = (),
        changed: Sequence[JobRecord] = (),
        *,
        lease: float,
        asks: Sequence[ToolAsk] = (),
    ) -> Written:
        """Write all of the records or none, and renew the host's lease; without records, only renew it.

        In the same transaction slots and starts of tools are taken and given back.

        Args:
            host_id: the host that writes.
            new: records that are written whole. A known id is replaced where it is of another job, which is finished,
                also by what `changed` says of it, or was left in the same queue by a host that is gone.
            changed: records of known jobs, of which only the fields are written that change while a job lives.
            lease: the length of the renewed lease, in seconds.
            asks: what the host asks for of tools, where the store `shares_tools`.

        Raises:
            LeaseLostError: another host has taken the lease, and what it held of tools is free.
        """

    @abstractmethod
    def write_lines(self, lines: Sequence[LogLine]) -> None:
        """Add lines to the logs of jobs; the newest MAX_LOG_LINES of each job stay until the job is deleted."""

    @abstractmethod
    def leave(self, host_id: str) -> None:
        """End the host's lease; other hosts may claim its live jobs at once."""

    @abstractmethod
    def claim(
        self, host: Host, *, queue: str, limit: int = 100, refuse: Refuse | None = None, again: Collection[str] = ()
    ) -> list[JobRecord]:
        """Take over live jobs of `queue` that no host runs, because their host died or they never had one.

        Of the ids in `again` the live jobs are returned too that belong to this host: a claim that has failed may have
        taken them. Each record is as its former host left it, except for `host`. No two hosts ever get the same job.
        Jobs for which `refuse` returns a text are left for other hosts. Those that never started show the text as their
        error, unless it is "", which means that it is not known yet.

        Raises:
            LeaseLostError: another host has taken this host's own lease.
        """

    @abstractmethod
    def hosts(self) -> Sequence[Host]:
        """Return the hosts that have a lease, or had one that no other host has ended yet; see `Host.is_over`."""

    @abstractmethod
    def cancel_requests(self, host_id: str) -> list[str]:
        """Return the ids of the host's live jobs that someone asked to cancel."""

    # --- tools, where the store `shares_tools` ---

    def tools(self) -> SharedTools:
        """Return what was set for tools, and what the executors hold of them and wait for."""
        raise NotImplementedError

    def pause_tool(self, tool_name: str, by: str | None) -> None:
        """Let no executor start a job of this tool, until it is resumed: `by` is None then, else who pauses it."""
        raise NotImplementedError

    def limit_tool(self, tool_name: str, limit: ToolLimit | None, by: str) -> None:
        """Set a limit that wins over those of all executors, and who sets it; None: their own ones hold again."""
        raise NotImplementedError

    def live_by_tool(self) -> dict[tuple[str, JobStatus], int]:
        """Return the number of live jobs by tool and status."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Close the connections; harmless when they are closed already."""
