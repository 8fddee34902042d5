"""The store in the memory of this process."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import MAX_QUARANTINED, TERMINAL, JobStatus, check_age
from executor_adapter.store.base import JobStore, Refuse, Written
from executor_adapter.store.host import Host
from executor_adapter.store.pickles import SignedPickles
from executor_adapter.store.records import ALL, MAX_LOG_LINES, SEARCHED, JobFilter, JobRecord, LogLine, Page
from executor_adapter.store.tools import ToolAsk


class MemoryStore(JobStore):
    """Keeps jobs until the process ends.

    Args:
        max_history: finished jobs that are kept; past it the oldest are dropped. Live jobs are never dropped.
        clock: gives the time, in seconds since the epoch.
    """

    durable: ClassVar[bool] = False
    url = "memory:"

    def __init__(self, *, max_history: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        self._max_history = max_history
        self._now = clock
        self._lock = threading.Lock()
        self._records: dict[str, JobRecord] = {}
        self._to_cancel: set[str] = set()
        self._lines: dict[str, deque[LogLine]] = {}

    # --- reading ---

    def get(self, job_id: str) -> JobRecord | None:
        return self._records.get(job_id)

    def find(
        self, wanted: JobFilter = ALL, *, offset: int = 0, limit: int | None = 100, newest_first: bool = True
    ) -> Page:
        found = sorted(self._matching(wanted), key=lambda record: (record.created_at, record.job_id))
        if newest_first:
            found.reverse()
        return Page(records=tuple(found[offset : None if limit is None else offset + limit]), total=len(found))

    def counts(self, wanted: JobFilter = ALL) -> dict[JobStatus, int]:
        counts = dict.fromkeys(JobStatus, 0)
        for record in self._matching(wanted):
            counts[record.status] += 1
        return counts

    def durations(self, wanted: JobFilter = ALL, *, limit: int = 100_000) -> list[float]:
        ended = [(record.completed_at, record.duration) for record in self._matching(wanted)]
        ended.sort(key=lambda times: times[0] or 0.0, reverse=True)
        return sorted(itertools.islice((took for _, took in ended if took is not None), limit))

    def oldest_waiting(self, wanted: JobFilter = ALL) -> float | None:
        waiting = (record.created_at for record in self._matching(wanted) if record.status is JobStatus.PENDING)
        return min(waiting, default=None)

    def lines(self, job_id: str, *, after: int = 0, limit: int = MAX_LOG_LINES) -> list[LogLine]:
        with self._lock:
            found = [line for line in self._lines.get(job_id, ()) if line.seq > after]
        return found[max(0, len(found) - limit) :]

    # --- requests ---

    def request_cancel(self, job_id: str) -> bool:
        with self._lock:
            record = self._records.get(job_id)
            if record is None or record.status in TERMINAL:
                return False
            if record.host is None:
                self._records[job_id] = replace(
                    record, status=JobStatus.CANCELLED, completed_at=self._now(), error_code="CANCELLED"
                )
            else:
                self._to_cancel.add(job_id)
            return True

    def enqueue(self, record: JobRecord) -> None:
        with self._lock:
            if record.job_id in self._records:
                raise InvalidJobError(f"job id {record.job_id!r} is taken: give the job another id")
            self._records[record.job_id] = record

    def release(self, job_id: str) -> bool:
        with self._lock:
            record = self._records.get(job_id)
            if record is None or not record.quarantined:
                return False
            self._records[job_id] = replace(record, quarantined=False)
            return True

    def sign_again(self, pickles: SignedPickles) -> tuple[int, list[str]]:
        return 0, []  # Nothing is pickled here.

    def cleanup(self, max_age_hours: float = 24, *, queue: str | None = None) -> int:
        check_age("max_age_hours", max_age_hours)
        before = self._now() - max_age_hours * 3600
        old = list(self._matching(JobFilter(queue=queue, ended_before=before, quarantined=False)))
        return self._delete(record.job_id for record in old)

    # --- for hosts ---

    def register(self, host: Host, *, lease: float) -> None:
        pass  # No other process could take its jobs.

    def write(
        self,
        host_id: str,
        new: Sequence[JobRecord] = (),
        changed: Sequence[JobRecord] = (),
        *,
        lease: float,
        asks: Sequence[ToolAsk] = (),
    ) -> Written:
        with self._lock:
            taken = [record.job_id for record in changed if not self._change(host_id, record)]
            taken += [record.job_id for record in new if not self._put(host_id, record)]
        self._drop_surplus()
        return Written(taken)

    def write_lines(self, lines: Sequence[LogLine]) -> None:
        with self._lock:
            for line in lines:
                self._lines.setdefault(line.job_id, deque(maxlen=MAX_LOG_LINES)).append(line)

    def leave(self, host_id: str) -> None:
        pass

    def claim(
        self, host: Host, *, queue: str, limit: int = 100, refuse: Refuse | None = None, again: Collection[str] = ()
    ) -> list[JobRecord]:
        return []

    def hosts(self) -> list[Host]:
        return []  # All are this process's.

    def cancel_requests(self, host_id: str) -> list[str]:
        with self._lock:
            self._to_cancel.intersection_update(self._records)  # Drop the ids of jobs that were deleted meanwhile.
            asked = [job_id for job_id in self._to_cancel if self._records[job_id].host == host_id]
            self._to_cancel.difference_update(asked)
            return [job_id for job_id in asked if self._records[job_id].status not in TERMINAL]

    def close(self) -> None:
        """Do nothing: there are no connections, and the jobs stay."""

    # --- inside ---

    def _put(self, host_id: str, record: JobRecord) -> bool:
        """Put a new record in place; return False where another host has the job."""
        known = self._records.get(record.job_id)
        if known is not None and known.host != host_id and not _replaces(record, known):
            return known.host == record.host
        self._records[record.job_id] = record
        self._to_cancel.discard(record.job_id)  # It was for the job that had the id before.
        return True

    def _change(self, host_id: str, record: JobRecord) -> bool:
        known = self._records.get(record.job_id)
        if known is None or known.host != host_id:
            return known is not None and known.host == record.host
        if record.job is None:
            record = replace(record, function=known.function, call=known.call, pickled=known.pickled, job=known.job)
        self._records[record.job_id] = record  # One that holds its job is whole.
        return True

    def _matching(self, wanted: JobFilter) -> Iterable[JobRecord]:
        with self._lock:
            records = list(self._records.values())
        return (record for record in records if _matches(record, wanted))

    def _delete(self, job_ids: Iterable[str]) -> int:
        with self._lock:
            deleted = [job_id for job_id in job_ids if self._records.pop(job_id, None) is not None]
            for job_id in deleted:
                self._lines.pop(job_id, None)
            return len(deleted)

    def _drop_surplus(self) -> None:
        surplus = len(self._records) - self._max_history
        if surplus > 0:
            # A tenth more is dropped, so that not every further job causes a search.
            finished = [r for r in self._records.values() if r.status in TERMINAL]
            held = [r.job_id for r in finished if r.quarantined]
            free = [r.job_id for r in finished if not r.quarantined][: surplus + self._max_history // 10]
            self._delete(free + held[: max(0, len(held) - MAX_QUARANTINED)])


def _replaces(record: JobRecord, known: JobRecord) -> bool:
    """Return whether a new record is of another job than the known one with its id, which has finished."""
    return known.status in TERMINAL and known.created_at != record.created_at


def _matches(record: JobRecord, wanted: JobFilter) -> bool:
    return (
        (wanted.statuses is None or record.status in wanted.statuses)
        and all(getattr(wanted, name) in (None, getattr(record, name)) for name in _NAMED)
        and (wanted.quarantined is None or wanted.quarantined == record.quarantined)
        and _within(record.created_at, wanted.created_from, wanted.created_before)
        and _within(record.completed_at, wanted.ended_from, wanted.ended_before)
        and (wanted.text is None or _contains(record, wanted.text))
    )


_NAMED = ("queue", "job_type", "tool_name", "retry_of")


def _within(at: float | None, begin: float | None, end: float | None) -> bool:
    is_open = begin is None and end is None
    return is_open or (at is not None and (begin is None or at >= begin) and (end is None or at < end))


def _contains(record: JobRecord, text: str) -> bool:
    return any(text.casefold() in (getattr(record, name) or "").casefold() for name in SEARCHED)
