"""Says why jobs of a store wait, and which ones nobody runs."""

from __future__ import annotations

from collections.abc import Iterable

from executor_adapter.cli.output import clock_time
from executor_adapter.job import TERMINAL, JobStatus
from executor_adapter.store import JobRecord, JobStore, SharedTools


def jobs_of_gone_hosts(store: JobStore, records: Iterable[JobRecord]) -> frozenset[str]:
    """Return the ids of those of the jobs that are not finished although the host that has them is gone."""
    live = {host.host_id for host in store.hosts() if not host.is_over}
    unfinished = (record for record in records if record.status not in TERMINAL and record.host is not None)
    return frozenset(record.job_id for record in unfinished if record.host not in live)


def reason_of(store: JobStore, record: JobRecord) -> str | None:
    """Return what a job waits for; None if it does not wait."""
    if jobs_of_gone_hosts(store, [record]):
        return f"a running host of queue {record.queue!r} that takes it over: its own is gone"
    if record.status not in (JobStatus.PENDING, JobStatus.RETRYING):
        return None
    shared = store.tools()
    if record.retry_at is not None and record.retry_at > shared.now:
        return f"the time of its next try, {clock_time(record.retry_at)}"
    if record.host is None:
        return f"a running host of queue {record.queue!r} that can run it"
    if record.tool_name is not None and (reason := reason_of_tool(record.tool_name, shared)) is not None:
        return reason
    return f"a free worker of its host, or what else it needs there (host {record.host})"


def reason_of_tool(name: str, shared: SharedTools) -> str | None:
    """Return why a tool lets no further job start; None if it does not hold jobs back."""
    control = shared.control(name)
    uses = [use for use in shared.uses if use.tool_name == name]
    if control.paused_by is not None:
        return f"`tools resume {name}`: it is paused by {control.paused_by}"
    if control.closed_until > shared.now:
        return f"the end of the pause that {name} asked for, {clock_time(control.closed_until)}"
    held, waits = sum(use.held for use in uses), any(use.waits_since is not None for use in uses)
    own = [use.max_concurrent for use in uses if use.max_concurrent is not None]
    most = control.limit.max_concurrent if control.limit is not None else min(own, default=None)
    if most is not None and held >= most:
        return f"a slot of {name}: {held} of {most} are taken"
    rates = [use.rate for use in uses if use.rate is not None]
    rate = control.limit.rate if control.limit is not None else min(rates, default=None)
    if rate is not None and waits:
        return f"its turn: {name} starts {rate:g} jobs a second"
    return None
