"""What hosts do in the database: hold a lease, and take over the jobs of those that are gone.

A host's row is its lease. Whoever finds it run out deletes it, and only as it was seen: the host cannot have renewed
it meanwhile, and cannot renew it afterwards. Ids of hosts are never used again, so a job whose host has no row is
nobody's. A job is claimed by changing its host only where it is still the one that was seen: a compare and set on its
row.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, cast, delete, extract, func, insert, literal, select, update

from executor_adapter.store.base import LeaseLostError
from executor_adapter.store.host import Host, this_machine
from executor_adapter.store.sql.filters import is_live, nobody_runs_it
from executor_adapter.store.sql.schema import hosts, jobs


def register(connection: Connection, host: Host, lease: float) -> None:
    row = {
        "host_id": host.host_id,
        "machine": host.machine,
        "pid": host.pid,
        "process_started": host.process_started,
        "presence": host.presence,
    }
    connection.execute(insert(hosts).values(row | {"expires_at": _now(connection) + lease}))


def renew(connection: Connection, host_id: str, lease: float) -> bool:
    """Whether the host still had its lease."""
    renewed = update(hosts).where(hosts.c.host_id == host_id).values(expires_at=_now(connection) + lease)
    return connection.execute(renewed).rowcount > 0


def end(connection: Connection, host_id: str) -> None:
    connection.execute(delete(hosts).where(hosts.c.host_id == host_id))


def claim(connection: Connection, host: Host, queue: str, limit: int) -> list[str]:
    """The ids of the jobs that are the host's from now on.

    Raises:
        LeaseLostError: the host's own lease was taken.
    """
    # Its row is locked until the claim is done: nobody can take the lease meanwhile, and with it what is claimed.
    if not _hold(connection, host.host_id):
        raise LeaseLostError(host.host_id)
    _end_leases_of_the_gone(connection, host.host_id)
    orphans = select(jobs.c.job_id, jobs.c.host).where(is_live, jobs.c.queue == queue, nobody_runs_it)
    seen: dict[str | None, list[str]] = defaultdict(list)
    first = orphans.order_by(jobs.c.created_at).limit(limit).with_for_update(of=jobs, skip_locked=True)
    for job_id, former in connection.execute(first):
        seen[former].append(job_id)
    return [job_id for former, ids in seen.items() for job_id in _take(connection, host.host_id, former, ids)]


def _take(connection: Connection, host_id: str, former: str | None, job_ids: list[str]) -> list[str]:
    as_seen = jobs.c.host.is_(None) if former is None else jobs.c.host == former
    take = update(jobs).where(jobs.c.job_id.in_(job_ids), is_live, as_seen).values(host=host_id)
    return list(connection.execute(take.returning(jobs.c.job_id)).scalars())


def _hold(connection: Connection, host_id: str) -> bool:
    """Lock the host's row as a renewal would; whether it is there."""
    return connection.execute(update(hosts).where(hosts.c.host_id == host_id).values(pid=hosts.c.pid)).rowcount > 0


def _end_leases_of_the_gone(connection: Connection, me: str) -> None:
    query = select(hosts, (hosts.c.expires_at < _now(connection)).label("ran_out")).where(hosts.c.host_id != me)
    # A row that is locked is being renewed, or ended by another. Or its host was cut off within a transaction, which
    # the database has yet to notice: nobody is to wait for that.
    for row in connection.execute(query.with_for_update(skip_locked=True)).mappings().all():
        if _is_gone(row):
            as_seen = (hosts.c.host_id == row["host_id"], hosts.c.expires_at == row["expires_at"])
            connection.execute(delete(hosts).where(*as_seen))


def any_is_dying(connection: Connection) -> bool:
    here = select(hosts).where(hosts.c.machine == this_machine())
    return any(_host(row).is_dying for row in connection.execute(here).mappings())


def _is_gone(row: Any) -> bool:
    known = _host(row).is_gone
    return bool(row["ran_out"]) if known is None else known


def _host(row: Any) -> Host:
    return Host(**{name: row[name] for name in ("host_id", "machine", "pid", "process_started", "presence")})


def _now(connection: Connection) -> ColumnElement[float]:
    """The database's clock, where machines may differ; else that of this machine."""
    if _is_sqlite(connection):
        return literal(time.time(), Double)
    return cast(extract("epoch", func.clock_timestamp()), Double)


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"
