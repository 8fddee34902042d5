"""Ends what dead processes have left on the server: `end_dead`, which may be repeated, whoever calls it.

The reporter does so a moment after a death. Where it could not, because the whole container or machine ended,
`executor-adapter prefect sweep` does it for all flow runs of a server, and so does the maintenance flow. Each process
that runs a flow with jobs does it once for the earlier runs of that flow that crashed, and for earlier starts of its
own run. A flow run that has not ended is left alone, unless the death of its process was seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings

from executor_adapter.prefect.crashes.closing import Closing
from executor_adapter.prefect.crashes.fate import Fate
from executor_adapter.prefect.crashes.records import FlowRunRecord, Records
from executor_adapter.prefect.crashes.unreported import Death, UnreportedDeaths
from executor_adapter.prefect.mirror.server_api import (
    DAY_SECONDS,
    PAGE_LIMIT,
    REQUEST_TIMEOUT,
    RejectedError,
    ServerApi,
    server_name,
)
from executor_adapter.prefect.mirror.state_events import FINAL_TYPES, UNFINISHED_TYPES, iso

logger = logging.getLogger("executor_adapter.prefect")

UNREACHABLE_ERRORS = (httpx.HTTPError, RejectedError)
"""Exceptions of a server that cannot be reached, or is in trouble."""

SWEEP_TIMEOUT = 600.0
"""Seconds for a sweep of a whole server."""

EARLIER_RUNS_TIMEOUT = 30.0
"""Seconds for the earlier runs of a flow, at its start."""

MAX_EARLIER_RUNS = 20
"""Earlier runs of a flow that are looked after at its start, the newest ones."""

MAX_EARLIER_DAYS = 7
"""Days since the end of an earlier run."""

MIN_AGE_SECONDS = 60.0
"""Seconds since the end of an earlier run: until then its own reporter, or its server's queue, may be at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptFlowRun:
    """A flow run that had not ended, or whose task runs had not."""

    flow_run_id: str
    name: str
    state: str
    task_runs: int
    """Its unfinished task runs."""
    is_recorded: bool
    """Whether the server has recorded their ends; False in a dry run."""


class Ends(NamedTuple):
    """What became of the flow runs of one dead process."""

    swept: list[SweptFlowRun]
    """Those of which something had not ended."""
    is_recorded: bool
    """Whether the server has recorded everything; False in a dry run."""


def end_dead(closing: Closing, death: Death, *, dry_run: bool = False) -> Ends:
    """End the flow runs of a dead process that nobody continues, and their task runs.

    What has ended stays as it is, so this may be repeated, and done by several processes at once.
    """
    records, has_seen = closing.records, death.died_at is not None
    # Who calls a flow run that has ended may be alive, unless the death of its process was seen.
    runs = records.in_same_process(death.run_counts, callers=has_seen)
    fates = {run.id: death.fate_of(run) for run in runs.values()}
    if death.managed is not None and fates.get(death.managed) is Fate.CONTINUES:
        return Ends([], not dry_run)
    left = {run.id: run for run in runs.values() if fates[run.id] is not Fate.CONTINUES}
    counts = {run_id: sum(1 for _ in closing.unfinished([run_id])) for run_id in left}
    is_recorded = False
    if not dry_run:
        for run in left.values():
            closing.end_flow_run(run, fates[run.id], death.died_at)
        is_recorded = closing.end_task_runs(left, death.died_at)
    after = records.flow_runs(left)
    swept = [
        SweptFlowRun(
            flow_run_id=run.id,
            name=run.name,
            state=after.get(run.id, run).state_name,
            task_runs=counts[run.id],
            is_recorded=is_recorded,
        )
        for run in left.values()
        if counts[run.id] or not run.is_final
    ]
    return Ends(swept, is_recorded)


def sweep(*, dry_run: bool = False, timeout: float = SWEEP_TIMEOUT) -> Iterator[SweptFlowRun]:
    """End what dead processes have left on the server; with `dry_run` only find it.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    # Prefect's client repeats requests while the server's database is busy, and takes its time.
    with get_client(httpx_settings={"timeout": REQUEST_TIMEOUT}, sync_client=True) as client:
        closing = Closing(ServerApi(client), time.monotonic() + timeout)
        yield from _end_all(closing, find_ended_runs, dry_run=dry_run)


def _end_all(
    closing: Closing, find: Callable[[Records], Iterable[FlowRunRecord]], *, dry_run: bool = False
) -> Iterator[SweptFlowRun]:
    """End what is left of the deaths that no reporter could report, then of the flow runs that `find` returns."""
    for path, death in UnreportedDeaths(server_name()).read():
        ends = end_dead(closing, death, dry_run=dry_run)
        if ends.is_recorded:
            path.unlink(missing_ok=True)
        yield from ends.swept
    for run in find(closing.records):
        yield from end_dead(closing, Death({run.id: None}), dry_run=dry_run).swept


def find_ended_runs(records: Records) -> list[FlowRunRecord]:
    """Return the flow runs that have ended, and have unfinished task runs."""
    ended = {"state": {"type": {"any_": sorted(FINAL_TYPES)}}}
    body = {"flow_runs": ended, "task_runs": {"state": {"type": {"any_": UNFINISHED_TYPES}}}, "sort": "ID_DESC"}
    page = found = records.find_flow_runs(body)  # All of it before the first change, which would move the pages.
    while len(page) == PAGE_LIMIT:
        page = records.find_flow_runs(body | {"offset": len(found)})
        found = found + page
    return found


# --- at the start of a flow ---

_swept: set[str] = set()
"""The servers for which this process has done it, by name."""


def sweep_earlier_runs(flow_run: FlowRun) -> None:
    """End what earlier processes have left of this flow, once in this process for each server and in the background.

    These are the unfinished task runs of its earlier runs that crashed, and of earlier starts of this run, which was
    scheduled again. Which machine they ran on does not matter: a new container has another name, and any other end of a
    task run wins.
    """
    if server_name() in _swept or get_current_settings().testing.test_mode:
        return
    _swept.add(server_name())
    context = copy_context()  # The thread uses the caller's settings.
    arguments = (str(flow_run.flow_id), str(flow_run.id), flow_run.run_count)
    threading.Thread(
        target=context.run, args=(_sweep_earlier_runs, *arguments), name="earlier-runs", daemon=True
    ).start()


def _sweep_earlier_runs(flow_id: str, run_id: str, run_count: int, wall: Callable[[], float] = time.time) -> None:
    try:
        with ServerApi.connected() as api:
            closing = Closing(api, time.monotonic() + EARLIER_RUNS_TIMEOUT)
            if run_count > 1:
                sweep_earlier_starts(closing, run_id, run_count)
            for swept in _end_all(closing, lambda records: find_earlier_runs(records, flow_id, wall())):
                logger.info("ended %d task runs of the crashed flow run %s", swept.task_runs, swept.name)
    except UNREACHABLE_ERRORS as error:  # The process may be exiting, and its server with it. The next one tries again.
        logger.info("cannot look for flow runs that crashed earlier: %r", error)
    except Exception:
        logger.exception(
            "cannot end the task runs of flow runs that crashed earlier; run: executor-adapter prefect sweep"
        )


def sweep_earlier_starts(closing: Closing, run_id: str, run_count: int) -> None:
    """End the unfinished task runs that a flow run left at its starts before the one with the number `run_count`."""
    before = len(closing.ended)
    closing.end_task_runs(closing.records.flow_runs([run_id]), None, before=run_count)
    if ended := len(closing.ended) - before:
        logger.info("ended %d task runs of an earlier start of this flow run", ended)


def find_earlier_runs(records: Records, flow_id: str, now: float) -> list[FlowRunRecord]:
    """Return the newest crashed runs of the flow that have unfinished task runs, and ended more than a minute ago."""
    ended = {"after_": iso(now - MAX_EARLIER_DAYS * DAY_SECONDS), "before_": iso(now - MIN_AGE_SECONDS)}
    return records.find_flow_runs(
        {
            "flows": {"id": {"any_": [flow_id]}},
            "flow_runs": {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": ended},
            "task_runs": {"state": {"type": {"any_": UNFINISHED_TYPES}}},
            "sort": "END_TIME_DESC",
            "limit": MAX_EARLIER_RUNS,
        }
    )
