"""Shared limits of tools in the database; what each host gets is decided by `store.tools.share_out`.

A transaction that changes shares locks the tool's row first, so that two hosts never take the same slot. It reads what
others hold after that, and counts only hosts that have a row: their leases. It first looks without a lock whether there
is anything to write, because hosts that wait ask often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from executor_adapter.job import ToolLimit
from executor_adapter.store.base import LeaseLostError
from executor_adapter.store.sql import leases
from executor_adapter.store.sql.schema import hosts, tool_uses, tools
from executor_adapter.store.tools import Decision, ToolAsk, ToolControl, ToolShare, ToolUse, is_news, share_out

Transaction = Callable[[], AbstractContextManager[Connection]]

_USE = [column.name for column in tool_uses.columns]
_CONTROL = [column.name for column in tools.columns]


def share_tools(
    reading: Transaction, changing: Transaction, host_id: str, asks: Sequence[ToolAsk], *, look_first: bool
) -> dict[str, ToolShare]:
    """Return what the host gets of each tool that it asks for; with `look_first`, write only if that changes anything.

    Raises:
        LeaseLostError: another host has taken the host's lease, and with it what it held.
    """
    if look_first:
        with reading() as connection:
            seen = _Seen(connection, host_id, asks)
        if not (seen.any_gone or any(seen.is_news(ask) for ask in asks)):
            return {ask.tool_name: seen.decide(ask).share for ask in asks}
    with changing() as connection:
        _lock(connection, sorted(ask.tool_name for ask in asks))
        seen = _Seen(connection, host_id, asks)
        if seen.any_gone:
            leases.end_leases_of_gone_hosts(connection, host_id)
            seen = _Seen(connection, host_id, asks)
        decisions = [seen.decide(ask) for ask in asks]
        for decision in decisions:
            _write(connection, decision, seen)
        _forget_dead(connection, seen.dead)
    return {decision.share.tool_name: decision.share for decision in decisions}


class _Seen:
    """What the database says of the tools that are asked for."""

    def __init__(self, connection: Connection, host_id: str, asks: Sequence[ToolAsk]) -> None:
        names = [ask.tool_name for ask in asks]
        self.host_id = host_id
        living = read_hosts(connection)
        if host_id not in living:
            raise LeaseLostError(host_id)
        self.now: float = living[host_id]["now"]
        self.controls = read_controls(connection, names)
        self.uses: dict[tuple[str, str], ToolUse] = {}
        self.dead: list[ToolUse] = []
        for use in read_uses(connection, names):
            if use.host_id in living:
                self.uses[use.tool_name, use.host_id] = use
            else:
                self.dead.append(use)
        holders = {use.host_id for use in self.uses.values() if use.held and use.host_id != host_id}
        self.any_gone = any(leases.is_gone(living[holder]) for holder in holders)

    def decide(self, ask: ToolAsk) -> Decision:
        others = [u for u in self.uses.values() if u.tool_name == ask.tool_name and u.host_id != self.host_id]
        mine = self.uses.get((ask.tool_name, self.host_id))
        return share_out(ask, self.control(ask), mine, others, host_id=self.host_id, now=self.now)

    def is_news(self, ask: ToolAsk) -> bool:
        return is_news(self.decide(ask), self.uses.get((ask.tool_name, self.host_id)), self.control(ask))

    def control(self, ask: ToolAsk) -> ToolControl:
        return self.controls.get(ask.tool_name) or ToolControl(tool_name=ask.tool_name)


def read_hosts(connection: Connection) -> Mapping[str, Any]:
    """Return the rows of the hosts by id, each with the time `now`, and whether its lease has `expired`."""
    now = leases.now(connection)
    query = select(hosts, (hosts.c.expires_at < now).label("expired"), now.label("now"))
    return {row["host_id"]: row for row in connection.execute(query).mappings()}


def read_controls(connection: Connection, names: Iterable[str] | None = None) -> dict[str, ToolControl]:
    """Return what holds for these tools, or for all of which anything is stored."""
    query = select(tools) if names is None else select(tools).where(tools.c.tool_name.in_(list(names)))
    return {row["tool_name"]: _control_of(row) for row in connection.execute(query).mappings()}


def read_uses(connection: Connection, names: Iterable[str] | None = None) -> list[ToolUse]:
    """Return what hosts hold of these tools, or of all; hosts that have died included."""
    query = select(tool_uses) if names is None else select(tool_uses).where(tool_uses.c.tool_name.in_(list(names)))
    return [ToolUse(**row) for row in connection.execute(query).mappings()]


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
    flavour = sqlite if connection.dialect.name == "sqlite" else postgresql
    rows = [{"tool_name": name, "closed_until": 0.0, "filled_at": 0.0} for name in names]
    connection.execute(flavour.insert(tools).on_conflict_do_nothing(), rows)
    connection.execute(query)


def _write(connection: Connection, decision: Decision, seen: _Seen) -> None:
    use, control = decision.use, decision.control
    mine = seen.uses.get((use.tool_name, use.host_id))
    if control != seen.controls[control.tool_name]:
        changed = {"closed_until": control.closed_until, "starts": control.starts, "filled_at": control.filled_at}
        connection.execute(update(tools).where(tools.c.tool_name == control.tool_name).values(changed))
    this = (tool_uses.c.tool_name == use.tool_name, tool_uses.c.host_id == use.host_id)
    if mine is None:
        connection.execute(insert(tool_uses).values(asdict(use)))
    elif use.held or use.waits_since is not None:
        connection.execute(update(tool_uses).where(*this).values(asdict(use)))
    else:
        connection.execute(delete(tool_uses).where(*this))


def _forget_dead(connection: Connection, dead: Sequence[ToolUse]) -> None:
    for use in dead:
        this = (tool_uses.c.tool_name == use.tool_name, tool_uses.c.host_id == use.host_id)
        connection.execute(delete(tool_uses).where(*this))
