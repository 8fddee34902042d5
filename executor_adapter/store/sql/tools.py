"""Shared limits of tools in the database; what each host gets is decided by `store.tools.share_out`.

A host's shares are written in the transaction that writes its jobs. It locks the tools' rows, so that two hosts never
take the same slot, reads what others hold after that, and counts only hosts that have a row: their leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from executor_adapter.job import ToolLimit
from executor_adapter.store.sql import leases
from executor_adapter.store.sql.queries import insert_missing
from executor_adapter.store.sql.schema import hosts, tool_uses, tools
from executor_adapter.store.tools import SharedTools, ToolAsk, ToolControl, ToolShare, ToolUse


def read(connection: Connection) -> SharedTools:
    """Return what holds for all tools, and what hosts with a lease hold of them."""
    now = leases.now(connection)
    query = select(hosts, (hosts.c.expires_at < now).label("is_expired"), now.label("now"))
    living = {row["host_id"]: row for row in connection.execute(query).mappings()}
    uses = [ToolUse(**row) for row in connection.execute(select(tool_uses)).mappings() if row["host_id"] in living]
    return SharedTools(
        now=next((row["now"] for row in living.values()), None) or connection.execute(select(now)).scalar_one(),
        # All rows first: the traceback of one that makes no sense would keep the statement and its transaction open.
        controls={row["tool_name"]: _control_of(row) for row in connection.execute(select(tools)).mappings().all()},
        uses=uses,
        any_gone=any(leases.host_of(living[host_id]).is_over for host_id in {use.host_id for use in uses if use.held}),
    )


def share(
    connection: Connection, host_id: str, asks: Sequence[ToolAsk]
) -> tuple[dict[str, ToolShare], SharedTools | None]:
    """Write what the host, which has a lease, gets of each tool that it asks for; return it and what it is based on."""
    if not asks:
        return {}, None
    names = sorted(ask.tool_name for ask in asks)
    _lock(connection, names)
    seen = read(connection)
    if seen.any_gone:
        leases.end_leases_of_gone_hosts(connection, host_id)
        seen = read(connection)
    shares = {ask.tool_name: seen.share(ask, host_id) for ask in asks}
    for decided in shares.values():
        _write(connection, decided, seen)
    of_dead = tool_uses.c.host_id.not_in(select(hosts.c.host_id))
    connection.execute(delete(tool_uses).where(tool_uses.c.tool_name.in_(names), of_dead))
    return shares, seen


def pause(connection: Connection, tool_name: str, by: str | None) -> None:
    """Pause a tool, or resume it where `by` is None."""
    _lock(connection, [tool_name])
    at = None if by is None else leases.now(connection)
    connection.execute(update(tools).where(tools.c.tool_name == tool_name).values(paused_by=by, paused_at=at))


def limit(connection: Connection, tool_name: str, new: ToolLimit | None, by: str | None) -> None:
    """Set a tool's limit for all hosts; None: the hosts' own limits hold again."""
    _lock(connection, [tool_name])
    values: dict[str, Any] = {"limited_by": None, "max_concurrent": None, "rate": None, "burst": None, "starts": None}
    if new is not None:
        rate = None if new.rate is None else new.rate * (1 - (new.buffer or 0.0))
        values |= {"limited_by": by, "max_concurrent": new.max_concurrent, "rate": rate, "burst": new.burst}
    connection.execute(update(tools).where(tools.c.tool_name == tool_name).values(values))


def _control_of(row: Any) -> ToolControl:
    limit = None
    if row["limited_by"] is not None:
        limit = ToolLimit(max_concurrent=row["max_concurrent"], rate=row["rate"], burst=row["burst"] or 1)
    same = ("tool_name", "limited_by", "paused_by", "paused_at", "closed_until", "starts", "filled_at")
    return ToolControl(limit=limit, **{name: row[name] for name in same})


def _lock(connection: Connection, names: Sequence[str]) -> None:
    """Lock the rows of these tools until the transaction ends; rows that are missing are made."""
    query = select(tools.c.tool_name).where(tools.c.tool_name.in_(names)).order_by(tools.c.tool_name)
    query = query.with_for_update()  # SQLite ignores this: a transaction that writes has locked the file.
    if len(connection.execute(query).all()) == len(names):
        return
    insert_missing(connection, tools, [{"tool_name": name, "closed_until": 0.0, "filled_at": 0.0} for name in names])
    connection.execute(query)


def _write(connection: Connection, share: ToolShare, seen: SharedTools) -> None:
    use, control = share.use, share.control
    if control != seen.controls[control.tool_name]:
        changed = {"closed_until": control.closed_until, "starts": control.starts, "filled_at": control.filled_at}
        connection.execute(update(tools).where(tools.c.tool_name == control.tool_name).values(changed))
    this = (tool_uses.c.tool_name == use.tool_name, tool_uses.c.host_id == use.host_id)
    if not use.held and use.waits_since is None:
        connection.execute(delete(tool_uses).where(*this))
    elif not connection.execute(update(tool_uses).where(*this).values(asdict(use))).rowcount:
        connection.execute(insert(tool_uses).values(asdict(use)))
