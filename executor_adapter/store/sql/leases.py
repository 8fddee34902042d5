"""Leases of hosts in the database, and the claiming of jobs whose host is gone.

A host's row is its lease. A host that finds another's lease expired deletes the row, but only if it is still as it was
read: then the owner has not renewed it meanwhile, and cannot renew it afterwards. Ids of hosts are never reused, so no
host runs a job whose host has no row. A job is claimed by a compare-and-set on its row: its host is changed only if it
is still the one that was read.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Text,
    cast,
    delete,
    extract,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)

from executor_adapter.job import JobStatus
from executor_adapter.store.base import LeaseLostError, Refuse
from executor_adapter.store.host import Host
from executor_adapter.store.sql.queries import has_no_host, is_live
from executor_adapter.store.sql.rows import record_of
from executor_adapter.store.sql.schema import hosts, jobs

_COLUMNS = [column.name for column in hosts.columns if column.name != "expires_at"]


def register(connection: Connection, host: Host, lease: float) -> None:
    """Insert the host, with a lease of so many seconds."""
    row = {name: getattr(host, name) for name in _COLUMNS}
    connection.execute(insert(hosts).values(row | {"expires_at": now(connection) + lease}))


def renew(connection: Connection, host_id: str, lease: float) -> bool:
    """Renew the host's lease; return whether it still had one."""
    renewed = update(hosts).where(hosts.c.host_id == host_id).values(expires_at=now(connection) + lease)
    return connection.execute(renewed).rowcount > 0


def end(connection: Connection, host_id: str) -> None:
    """Delete the host, and with it its lease."""
    connection.execute(delete(hosts).where(hosts.c.host_id == host_id))


def claim(connection: Connection, host: Host, queue: str, limit: int, refuse: Refuse | None = None) -> list[str]:
    """Claim jobs of `queue` that no host runs; return their ids. Those that `refuse` gives a reason for are left.

    Raises:
        LeaseLostError: another host has taken this host's own lease.
    """
    # The row stays locked until the claim is committed, so that no other host takes the lease, and with it the claimed
    # jobs, meanwhile.
    lock = update(hosts).where(hosts.c.host_id == host.host_id).values(pid=hosts.c.pid)  # As a renewal would.
    if not connection.execute(lock).rowcount:
        raise LeaseLostError(host.host_id)
    end_leases_of_gone_hosts(connection, host.host_id)
    cancel_orphans(connection)
    seen: dict[str | None, list[str]] = defaultdict(list)
    for row in itertools.islice(_orphans(connection, queue, limit, refuse), limit):
        seen[row["host"]].append(row["job_id"])
    return [job_id for former, ids in seen.items() for job_id in _take(connection, host.host_id, former, ids)]


def cancel_orphans(connection: Connection, *which: ColumnElement[bool]) -> None:
    """Cancel the jobs that no host runs and that someone asked to cancel; of all jobs those `which` selects."""
    asked = select(jobs.c.job_id).where(is_live, has_no_host, jobs.c.cancel_requested, *which)
    over = {"status": JobStatus.CANCELLED.value, "completed_at": time.time(), "error_code": "CANCELLED"}
    # Locked rows are skipped: another host is claiming or cancelling these jobs.
    asked = asked.with_for_update(of=jobs, skip_locked=True)
    connection.execute(update(jobs).where(jobs.c.job_id.in_(asked)).values(over))


def _orphans(connection: Connection, queue: str, page_size: int, refuse: Refuse | None) -> Iterator[RowMapping]:
    """Yield the jobs without a host, the oldest first, except for those that are refused."""
    query = select(jobs).where(is_live, jobs.c.queue == queue, has_no_host)
    query = query.order_by(jobs.c.created_at, jobs.c.job_id).limit(page_size)
    query = query.with_for_update(of=jobs, skip_locked=True)
    page = connection.execute(query).mappings().all()
    while page:
        for row in page:
            reason = None if refuse is None else refuse(record_of(row))
            if reason is None:
                yield row
            else:
                _show_refusal(connection, row, reason)
        if len(page) < page_size:
            return
        last = tuple_(literal(page[-1]["created_at"], Double), literal(page[-1]["job_id"], Text))
        page = connection.execute(query.where(tuple_(jobs.c.created_at, jobs.c.job_id) > last)).mappings().all()


def _show_refusal(connection: Connection, row: RowMapping, reason: str) -> None:
    """Write into the row of a job that never started why it is left; the last error of any other job is kept."""
    if reason and not row["attempt"] and row["error_message"] != reason:
        shown = {"error_code": "CONFIGURATION_ERROR", "error_message": reason}
        connection.execute(update(jobs).where(jobs.c.job_id == row["job_id"], is_live).values(shown))


def _take(connection: Connection, host_id: str, former: str | None, job_ids: list[str]) -> list[str]:
    as_seen = jobs.c.host.is_(None) if former is None else jobs.c.host == former
    take = update(jobs).where(jobs.c.job_id.in_(job_ids), is_live, as_seen).values(host=host_id)
    return list(connection.execute(take.returning(jobs.c.job_id)).scalars())


def end_leases_of_gone_hosts(connection: Connection, me: str) -> None:
    """End the leases of all hosts but `me` that are gone."""
    query = select(hosts, (hosts.c.expires_at < now(connection)).label("is_expired")).where(hosts.c.host_id != me)
    gone = [row for row in connection.execute(query).mappings().all() if host_of(row).is_over]
    as_seen = tuple_(hosts.c.host_id, hosts.c.expires_at).in_([(row["host_id"], row["expires_at"]) for row in gone])
    # No other rows are locked: if this host were cut off now, the database would keep them for long, and no host
    # could renew its lease. Locked rows are skipped: such a lease is being renewed or ended, or its host was cut off.
    to_end = select(hosts.c.host_id).where(as_seen).with_for_update(skip_locked=True)
    if gone:
        connection.execute(delete(hosts).where(hosts.c.host_id.in_(to_end)))


def known(connection: Connection) -> list[Host]:
    """Return all hosts that have a row."""
    query = select(hosts, (hosts.c.expires_at < now(connection)).label("is_expired"))
    return [host_of(row) for row in connection.execute(query).mappings()]


def host_of(row: RowMapping) -> Host:
    """Return the host of a row, which also says whether its lease `is_expired`."""
    return Host(**{name: row[name] for name in (*_COLUMNS, "is_expired")})


def now(connection: Connection) -> ColumnElement[float]:
    """Return the database's clock where several machines use it, otherwise this machine's."""
    if connection.dialect.name == "sqlite":
        return literal(time.time(), Double)
    return cast(extract("epoch", func.clock_timestamp()), Double)
