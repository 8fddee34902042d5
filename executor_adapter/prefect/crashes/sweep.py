"""Ends the unfinished task runs of flow runs that have ended: nothing runs them any more.

The reporter does so a moment after a death. Where it could not, because the whole container or machine ended,
`executor-adapter prefect sweep` does it for all flow runs of a server. Each process that runs a flow with jobs does it
once for the earlier runs of that flow that crashed, and for earlier starts of its own run. All leave flow runs alone
that have not ended, but for those of the deaths that a reporter left on disk, because it reached no server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings

from executor_adapter.prefect.crashes.closing import DIED, Closing
from executor_adapter.prefect.crashes.fate import Fate, fate_of
from executor_adapter.prefect.crashes.records import UNFINISHED_TYPES, FlowRunRecord, Records
from executor_adapter.prefect.crashes.reporter import Report
from executor_adapter.prefect.crashes.unreported import UnreportedDeaths
from executor_adapter.prefect.mirror.server_api import (
    DAY_SECONDS,
    PAGE_LIMIT,
    REQUEST_TIMEOUT,
    RejectedError,
    ServerApi,
    server_name,
)
from executor_adapter.prefect.mirror.state_events import FINAL_TYPES, iso

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
    """A flow run whose task runs had not ended with it."""

    flow_run_id: str
    name: str
    state: str
    task_runs: int
    """Its unfinished task runs, with those of its subflow runs in the same process."""
    is_recorded: bool
    """Whether the server has recorded their ends; False in a dry run."""


def sweep(*, dry_run: bool = False, timeout: float = SWEEP_TIMEOUT) -> Iterator[SweptFlowRun]:
    """End the unfinished task runs of all ended flow runs of the server; with `dry_run` only find them.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    # Prefect's client repeats requests while the server's database is busy, and takes its time.
    with get_client(httpx_settings={"timeout": REQUEST_TIMEOUT}, sync_client=True) as client:
        closing = Closing(ServerApi(client), time.monotonic() + timeout)
        yield from _report_deaths(closing, dry_run=dry_run)
        for run in _with_unfinished_task_runs(closing.records, {"state": {"type": {"any_": sorted(FINAL_TYPES)}}}):
            swept = _sweep_flow_run(closing, run, dry_run=dry_run)
            if swept.task_runs:
                yield swept


def _report_deaths(closing: Closing, *, dry_run: bool = False) -> Iterator[SweptFlowRun]:
    """Report the deaths that no reporter could report, and yield the flow runs of which something had not ended."""
    for path, death in UnreportedDeaths(server_name()).read():
        report = Report(closing, death, runner=None)
        found = {run.id: run for run in report.find().values() if report.fate(run) is not Fate.CONTINUES}
        task_runs = {run_id: sum(1 for _ in closing.unfinished([run_id])) for run_id in found}
        is_recorded = not dry_run and report.run()
        if is_recorded:
            path.unlink(missing_ok=True)
        after = closing.records.flow_runs(found)
        for run in found.values():
            if task_runs[run.id] or not run.is_final:
                yield SweptFlowRun(
                    flow_run_id=run.id,
                    name=run.name,
                    state=after.get(run.id, run).state_name,
                    task_runs=task_runs[run.id],
                    is_recorded=is_recorded,
                )


def _with_unfinished_task_runs(records: Records, flow_runs: dict[str, Any]) -> Iterator[FlowRunRecord]:
    body = {"flow_runs": flow_runs, "task_runs": {"state": {"type": {"any_": UNFINISHED_TYPES}}}, "sort": "ID_DESC"}
    page = found = records.find_flow_runs(body)  # All of it before the first change, which would move the pages.
    while len(page) == PAGE_LIMIT:
        page = records.find_flow_runs(body | {"offset": len(found)})
        found = found + page
    return iter(found)


def _sweep_flow_run(closing: Closing, run: FlowRunRecord, *, dry_run: bool = False) -> SweptFlowRun:
    runs = closing.records.in_same_process([run.id], callers=False)
    if dry_run:
        count, is_recorded = sum(1 for _ in closing.unfinished(runs)), False
    else:
        before = len(closing.ended)
        for each in runs.values():
            if fate_of(each, None) is Fate.CRASH:  # A subflow run, since the flow run has ended.
                closing.set_flow_run_state(each, "CRASHED", DIED)
        is_recorded = closing.end_task_runs(runs, None)
        count = len(closing.ended) - before
    return SweptFlowRun(
        flow_run_id=run.id, name=run.name, state=run.state_name, task_runs=count, is_recorded=is_recorded
    )


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
            for swept in _report_deaths(closing):
                _log(swept)
            if run_count > 1:
                sweep_earlier_starts(closing, run_id, run_count)
            for run in find_earlier_runs(closing.records, flow_id, wall()):
                _log(_sweep_flow_run(closing, run))
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


def _log(swept: SweptFlowRun) -> None:
    if swept.task_runs:
        logger.info("ended %d task runs of the crashed flow run %s", swept.task_runs, swept.name)


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
