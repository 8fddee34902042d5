"""The JobStore over SQLAlchemy; leases and claims of hosts are in `leases`."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import JobStatus, ToolLimit, check_age
from executor_adapter.store.base import JobStore, LeaseLostError, Refuse, Written
from executor_adapter.store.host import Host
from executor_adapter.store.pickles import SignedPickles
from executor_adapter.store.records import ALL, MAX_LOG_LINES, JobFilter, JobRecord, LogLine, Page
from executor_adapter.store.sql import leases, tools
from executor_adapter.store.sql.cleanup import delete_finished
from executor_adapter.store.sql.engines import CHECKPOINT_PAGES, SECRET_PARAMETERS, translate_errors
from executor_adapter.store.sql.queries import conditions, count_of, insert_missing, is_live, page_of
from executor_adapter.store.sql.rows import count_of_statuses, record_of, row_of
from executor_adapter.store.sql.schema import jobs
from executor_adapter.store.sql.schema import lines as logged
from executor_adapter.store.sql.writes import JobWriter
from executor_adapter.store.tools import SharedTools, ToolAsk

_newest_dropped = (
    select(logged.c.seq)
    .where(logged.c.job_id == bindparam("its_id"))
    .order_by(logged.c.seq.desc())
    .offset(MAX_LOG_LINES)
    .limit(1)
    .scalar_subquery()
)
_drop_old_lines = delete(logged).where(logged.c.job_id == bindparam("its_id"), logged.c.seq <= _newest_dropped)
"""Drops all but the newest MAX_LOG_LINES of a job."""


class SqlStore(JobStore):
    """Stores jobs in a database; made by `open_sql_store`."""

    durable: ClassVar[bool] = True
    shares_tools: ClassVar[bool] = True

    def __init__(self, engine: Engine) -> None:
        self.url = engine.url.difference_update_query(SECRET_PARAMETERS).render_as_string(hide_password=True)
        self._engine = engine
        self._writer = JobWriter(engine.dialect)

    # --- reading ---

    def get(self, job_id: str) -> JobRecord | None:
        with self._reading() as connection:
            row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).mappings().first()
        return None if row is None else record_of(row)

    def find(
        self, wanted: JobFilter = ALL, *, offset: int = 0, limit: int | None = 100, newest_first: bool = True
    ) -> Page:
        with self._reading() as connection:
            rows = connection.execute(page_of(wanted, offset, limit, newest_first)).mappings()
            records = tuple(map(record_of, rows))
            found = len(records)
            is_last_page = limit is None or (found < limit and (found or not offset))
            if is_last_page:
                return Page(records=records, total=offset + found)
            counted: int = connection.execute(count_of(wanted, self.counts_up_to + 1)).scalar_one()
        if counted <= self.counts_up_to:
            return Page(records=records, total=counted)
        seen = offset + found if found else 0
        return Page(records=records, total=max(seen, self.counts_up_to), total_is_exact=False)

    def counts(self, wanted: JobFilter = ALL) -> dict[JobStatus, int]:
        query = select(jobs.c.status, func.count()).where(*conditions(wanted)).group_by(jobs.c.status)
        with self._reading() as connection:
            return count_of_statuses((status, count) for status, count in connection.execute(query))

    def durations(self, wanted: JobFilter = ALL, *, limit: int = 100_000) -> list[float]:
        took = jobs.c.completed_at - jobs.c.started_at
        query = select(took).where(*conditions(wanted), took.is_not(None)).order_by(jobs.c.completed_at.desc())
        return sorted(max(0.0, seconds) for seconds in self._column(query.limit(limit)))

    def oldest_waiting(self, wanted: JobFilter = ALL) -> float | None:
        is_waiting = jobs.c.status == JobStatus.PENDING.value
        (oldest,) = self._column(select(func.min(jobs.c.created_at)).where(is_waiting, *conditions(wanted)))
        return None if oldest is None else float(oldest)

    # --- requests ---

    def request_cancel(self, job_id: str) -> bool:
        with self._changing() as connection:
            ask = update(jobs).where(jobs.c.job_id == job_id, is_live).values(cancel_requested=True)
            is_found = connection.execute(ask).rowcount > 0
            leases.cancel_orphans(connection, jobs.c.job_id == job_id)
            return is_found

    def enqueue(self, record: JobRecord) -> None:
        try:
            with self._changing() as connection:
                connection.execute(insert(jobs), [row_of(record)])
        except IntegrityError:
            raise InvalidJobError(f"job id {record.job_id!r} is taken: give the job another id") from None

    def release(self, job_id: str) -> bool:
        quarantined = (jobs.c.job_id == job_id, jobs.c.quarantined)
        with self._changing() as connection:
            return connection.execute(update(jobs).where(*quarantined).values(quarantined=False)).rowcount > 0

    def sign_again(self, pickles: SignedPickles) -> tuple[int, list[str]]:
        with self._changing() as connection:
            rows = connection.execute(select(jobs.c.job_id, jobs.c.pickled).where(jobs.c.pickled.is_not(None))).all()
            signed = {job_id: pickles.sign_again(each) for job_id, each in rows if pickles.is_signed(each)}
            for job_id, each in signed.items():
                connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(pickled=each))
        return len(signed), [job_id for job_id, _ in rows if job_id not in signed]

    def cleanup(self, max_age_hours: float = 24, *, queue: str | None = None) -> int:
        check_age("max_age_hours", max_age_hours)
        before = time.time() - max_age_hours * 3600
        changing = partial(self._changing, checkpoint_pages=CHECKPOINT_PAGES // 4)
        return delete_finished(self._reading, changing, before=before, queue=queue)

    def lines(self, job_id: str, *, after: int = 0, limit: int = MAX_LOG_LINES) -> list[LogLine]:
        columns = [logged.c[field.name] for field in dataclasses.fields(LogLine)]
        query = select(*columns).where(logged.c.job_id == job_id, logged.c.seq > after)
        with self._reading() as connection:
            newest = connection.execute(query.order_by(logged.c.seq.desc()).limit(limit)).all()
        return [LogLine(*row) for row in reversed(newest)]

    # --- for hosts ---

    def register(self, host: Host, *, lease: float) -> None:
        with self._changing() as connection:
            leases.register(connection, host, lease)

    def write(
        self,
        host_id: str,
        new: Sequence[JobRecord] = (),
        changed: Sequence[JobRecord] = (),
        *,
        lease: float,
        asks: Sequence[ToolAsk] = (),
    ) -> Written:
        with self._changing() as connection:
            if not leases.renew(connection, host_id, lease):
                raise LeaseLostError(host_id)
            taken = self._writer.write(connection, host_id, new, changed)
            if taken:  # Perhaps by hosts that have died.
                leases.end_leases_of_gone_hosts(connection, host_id)
                taken = self._writer.write(connection, host_id, new, changed)
            # Last, because others wait for the tools' rows until the transaction ends.
            return Written(taken, *tools.share(connection, host_id, asks))

    def write_lines(self, lines: Sequence[LogLine]) -> None:
        with self._changing() as connection:
            # Some are there already, where the answer to an earlier call was lost.
            insert_missing(connection, logged, [dataclasses.asdict(line) for line in lines])
            connection.execute(_drop_old_lines, [{"its_id": job_id} for job_id in {line.job_id for line in lines}])

    def leave(self, host_id: str) -> None:
        with self._changing() as connection:
            leases.end(connection, host_id)

    def claim(
        self, host: Host, *, queue: str, limit: int = 100, refuse: Refuse | None = None, again: Collection[str] = ()
    ) -> list[JobRecord]:
        with self._changing() as connection:
            claimed = [*again, *leases.claim(connection, host, queue, limit, refuse)]
            mine = (jobs.c.job_id.in_(claimed), is_live, jobs.c.host == host.host_id)
            rows = connection.execute(select(jobs).where(*mine).order_by(jobs.c.created_at, jobs.c.job_id)).mappings()
            return list(map(record_of, rows))

    def hosts(self) -> list[Host]:
        with self._reading() as connection:
            return leases.known(connection)

    def cancel_requests(self, host_id: str) -> list[str]:
        return self._column(select(jobs.c.job_id).where(is_live, jobs.c.host == host_id, jobs.c.cancel_requested))

    # --- tools ---

    def tools(self) -> SharedTools:
        with self._reading() as connection:
            return tools.read(connection)

    def pause_tool(self, tool_name: str, by: str | None) -> None:
        with self._changing() as connection:
            tools.pause(connection, tool_name, by)

    def limit_tool(self, tool_name: str, limit: ToolLimit | None, by: str) -> None:
        with self._changing() as connection:
            tools.limit(connection, tool_name, limit, by)

    def live_by_tool(self) -> dict[tuple[str, JobStatus], int]:
        query = select(jobs.c.tool_name, jobs.c.status, func.count()).where(is_live, jobs.c.tool_name.is_not(None))
        with self._reading() as connection:
            rows = connection.execute(query.group_by(jobs.c.tool_name, jobs.c.status)).all()
        return {(name, JobStatus(status)): count for name, status, count in rows}

    def close(self) -> None:
        self._engine.dispose()

    # --- inside ---

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translate_errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _changing(self, **options: Any) -> Iterator[Connection]:
        with translate_errors(), self._engine.connect().execution_options(writes=True, **options) as connection:
            with connection.begin():
                yield connection

    def _column(self, query: Select[Any]) -> list[Any]:
        with self._reading() as connection:
            return list(connection.execute(query).scalars())
